// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
)

// domstats returns the figures of a domain.
func domstats(t *testing.T, name string) map[string]float64 {
	t.Helper()
	var doc struct {
		Domains []struct{ Stats map[string]float64 }
	}
	out := must(t, "frail", "domstats", name, "--json")
	if err := json.Unmarshal([]byte(out), &doc); err != nil || len(doc.Domains) != 1 {
		t.Fatalf("%v in\n%s", err, out)
	}
	return doc.Domains[0].Stats
}

// TestMetrics compares the figures of a guest, before and after it makes calls, with what
// Prometheus gets of a fraild in its unit's sandbox.
func TestMetrics(t *testing.T) {
	begin(t)
	const config, address = "/etc/frail/frail.toml", "127.0.0.1:9472"
	old, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	listen := strings.Replace(string(old), "\n#listen = \"\"\n", "\nlisten = \""+address+"\"\n", 1)
	if listen == string(old) {
		t.Fatalf("%s has no metrics.listen:\n%s", config, old)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(config, old, 0o644); err != nil {
			t.Error(err)
		}
		must2(t, "systemctl", "restart", "fraild.service")
	})
	if err := os.WriteFile(config, []byte(listen), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "systemctl", "restart", "fraild.service")

	guest := startGuest(t, "measured", traced)
	waitGuest(t, guest)
	waitTraced(t, guest)
	before := domstats(t, guest.Name)
	if before["armed"] != 1 || before["layout_state.known"] != 1 || before["layout_resolve_seconds"] <= 0 {
		t.Errorf("a traced guest has %v", before)
	}
	tr := startTrace(t, guest.Name)
	runIn(t, guest, "t-opens")
	records := tr.stop()
	events := float64(records[len(records)-1].Delivered)
	after := domstats(t, guest.Name)
	// Each event was a VM exit, or a return told at the next call.
	rose := 0.0
	for _, key := range []string{"vm_exits.syscall", "vm_exits.sysret", "deferred_returns.known", "deferred_returns.unknown"} {
		rose += after[key] - before[key]
	}
	if events == 0 || rose < events || after["events"] != events {
		t.Errorf("a trace of %v events, between %v and %v", events, before, after)
	}

	ctx := testContext(t, waitLimit)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"frail_armed", "frail_vm_exits_total"} {
		if !strings.Contains(string(text), fmt.Sprintf("\n%s{", name)) || !strings.Contains(string(text), `domain="measured"`) {
			t.Errorf("%s: no %s of the guest in\n%s", resp.Status, name, text)
		}
	}
}
