// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"frail/api"
)

// scrape returns what fraild serves to Prometheus.
func (p *daemonProcess) scrape(t *testing.T) string {
	t.Helper()
	client := &http.Client{
		Timeout: patience,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.metrics)
		}},
	}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://fraild/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v:\n%s", resp.Status, err, text)
	}
	return string(text)
}

// A running fraild serves its figures to Prometheus and to frail domstats.
func testMetrics(t *testing.T, p *daemonProcess, asks *libvirt.Domain) {
	uuid, err := asks.GetUUIDString()
	if err != nil {
		t.Fatal(err)
	}
	text := p.scrape(t)
	for _, want := range []string{
		fmt.Sprintf("\nfrail_armed{domain=\"asks\",uuid=%q} 0\n", uuid),
		"\n# TYPE frail_armed gauge\n",
		"\n# TYPE frail_alerts_total counter\n",
		"\nfrail_domains{state=\"error\"} 2\n",
		"\nfrail_domains{state=\"not_traced\"} 1\n",
		"\nfrail_domains{state=\"shut_off\"} 1\n",
		"\nfrail_sessions 0\n",
		"\nfrail_build_info{",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in what is scraped:\n%s", want, text)
		}
	}
	if info, err := os.Stat(p.metrics); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	t.Run("promtool", func(t *testing.T) {
		promtool, err := exec.LookPath("promtool")
		if err != nil {
			t.Skip("promtool is not installed: Debian's package prometheus has it")
		}
		cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	})

	out, _, err := p.frail(t, "domstats", "asks", uuid)
	const begin = "Domain: 'asks'\n  armed=0\n  alerts.attack=0\n"
	if err != nil || !strings.HasPrefix(out, begin) || strings.Count(out, begin) != 2 || !strings.Contains(out, "\n  events_lost.ring_full=0\n") {
		t.Errorf("domstats prints, error %v\n%s", err, out)
	}
	out, _, err = p.frail(t, "domstats", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Domains []struct {
			Name, UUID string
			Stats      map[string]float64
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	var names []string
	for _, d := range doc.Domains {
		names = append(names, d.Name)
		if armed, ok := d.Stats["armed"]; !ok || armed != 0 {
			t.Errorf("%s has %v", d.Name, d.Stats)
		}
	}
	if got := strings.Join(names, " "); got != "asks bad plain sleeping" || doc.Domains[0].UUID != uuid {
		t.Errorf("domains are %q, the first one's UUID is %s", got, doc.Domains[0].UUID)
	}
	_, _, err = p.frail(t, "domstats", "asks", "nobody")
	wantError(t, err, "failed to get domain 'nobody'")
}

func TestWriteStats(t *testing.T) {
	resp := &api.StatsResponse{Domains: []*api.DomainStats{
		{Name: "a\x1b[31m", Uuid: "u1", Stats: []*api.Stat{{Key: "vm_exits.syscall", Value: 1 << 53}, {Key: "layout_resolve_seconds", Value: 0.25}}},
		{Name: "b", Uuid: "u2"},
	}}
	var b bytes.Buffer
	if err := writeStats(&b, resp); err != nil {
		t.Fatal(err)
	}
	const text = "Domain: 'a\\x1b[31m'\n  vm_exits.syscall=9007199254740992\n  layout_resolve_seconds=0.25\n\nDomain: 'b'\n\n"
	if b.String() != text {
		t.Errorf("printed\n%s, want\n%s", b.String(), text)
	}
	b.Reset()
	if err := writeStatsJSON(&b, resp); err != nil {
		t.Fatal(err)
	}
	const doc = `{"domains":[{"name":"a\u001b[31m","uuid":"u1","stats":{"layout_resolve_seconds":0.25,"vm_exits.syscall":9007199254740992}},{"name":"b","uuid":"u2","stats":{}}]}` + "\n"
	if b.String() != doc {
		t.Errorf("printed\n%s, want\n%s", b.String(), doc)
	}
	b.Reset()
	if err := writeStatsJSON(&b, new(api.StatsResponse)); err != nil || b.String() != "{\"domains\":[]}\n" {
		t.Errorf("of nothing %q, %v", b.String(), err)
	}
}
