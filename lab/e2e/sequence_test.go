// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"frail/lab/vm"
)

// analysed asks for the analysis with a wait that never ends: a test says itself when what
// was learnt is normal.
const analysed = `<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:trace/>` +
	`<frail:sequence learn="yes" normal-wait="52w" anomaly="1000"/></frail:frail>`

// The guest's server is a shell at another path, so that it is an executable of its own: a copy
// of busybox is busybox by any name that begins so.
// serve is what it does all day, attack what it never did: it reads a file, and starts shells.
const (
	serverPath = "/tmp/busybox-server"
	install    = `cp /bin/busybox /tmp/busybox-server && echo data >/tmp/page`
	serve      = `i=0; while [ $i -lt %d ]; do read x </tmp/page; echo $x >/dev/null; i=$((i+1)); done`
	attack     = `i=0; while [ $i -lt 5 ]; do umask 077; read x </etc/shadow; cd /; /bin/busybox sh -c true; kill -0 $$; i=$((i+1)); done`
)

// runServer runs the server once: what it does in it has to end by itself, and well.
func runServer(t *testing.T, guest *vm.VM, parts ...string) vm.Result {
	t.Helper()
	res := runIn(t, guest, serverPath+" sh -c '"+strings.Join(parts, "; ")+"; exit 0'")
	if res.Status != 0 {
		t.Fatalf("the server ends with %d: %s", res.Status, res.Output)
	}
	return res
}

// alert is a line of frail alerts --json.
type alert struct {
	Kind, Domain, Executable, Comm, History string
	PID                                     int
	Calls                                   []string
	Missed                                  []int
	LFC                                     int
}

func alertsOf(t *testing.T, text string) []alert {
	t.Helper()
	var out []alert
	for dec := json.NewDecoder(strings.NewReader(text)); dec.More(); {
		var a alert
		if err := dec.Decode(&a); err != nil {
			t.Fatalf("%v in %q", err, text)
		}
		out = append(out, a)
	}
	return out
}

// profileOf is an entry of frail profile list --json.
type profileOf struct {
	Executable string
	Normal     bool
	Train      uint64
	Calls      int
}

func serverProfile(t *testing.T, domain string) (profileOf, error) {
	t.Helper()
	var doc struct{ Profiles []profileOf }
	out, errs, err := command(t, "frail", "profile", "list", domain, "--json")
	if err != nil {
		return profileOf{}, fmt.Errorf("%w: %s", err, errs)
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return profileOf{}, err
	}
	for _, p := range doc.Profiles {
		if p.Executable == serverPath {
			return p, nil
		}
	}
	return profileOf{}, fmt.Errorf("no profile of server in %s", out)
}

// TestAttackOnAServer trains a server, attacks it, and has the attack told, by the live
// analysis and by the replay of a capture of it, but not learnt.
func TestAttackOnAServer(t *testing.T) {
	begin(t)
	guest := startGuest(t, "server", metadata(analysed))
	waitGuest(t, guest)
	waitTraced(t, guest)
	runIn(t, guest, install)
	// Twice: the end of one run and the start of the next are learnt too.
	for range 2 {
		runServer(t, guest, `echo pid=$$`, fmt.Sprintf(serve, 200))
	}
	must(t, "frail", "profile", "normalize", guest.Name+serverPath)
	dir := t.TempDir()
	trained := filepath.Join(dir, "server.profile")
	must(t, "frail", "profile", "export", guest.Name+serverPath, trained)

	runServer(t, guest, `echo pid=$$`, fmt.Sprintf(serve, 50))
	if got := alertsOf(t, must(t, "frail", "alerts", guest.Name, "--json")); len(got) != 0 {
		t.Fatalf("alerts of a server that does what it always did: %+v", got)
	}

	file, ready := filepath.Join(dir, "attack.cap"), filepath.Join(dir, "ready")
	capture := exec.CommandContext(t.Context(), "frail", "capture", guest.Name, "-o", file, "--ready-file", ready)
	if err := capture.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "frail capture records", func() error { _, err := os.Stat(ready); return err })
	attacked := runServer(t, guest, `echo pid=$$`, fmt.Sprintf(serve, 50), attack)
	if err := capture.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := capture.Wait(); err != nil {
		t.Fatal(err)
	}

	var live []alert
	eventually(t, "the attack is told", func() error {
		live = alertsOf(t, must(t, "frail", "alerts", guest.Name, "--json"))
		if len(live) == 0 {
			return fmt.Errorf("no alert")
		}
		return nil
	})
	a := live[0]
	t.Logf("%+v", a)
	if a.Kind != "attack" || a.Executable != serverPath || a.Comm != "busybox-server" || a.Domain != guest.Name || a.LFC != 13 ||
		a.PID != int(values(attacked.Output)["pid"]) || len(a.Calls) != 9 || len(a.Missed) == 0 {
		t.Errorf("alert %+v of %s", a, attacked.Output)
	}
	// Its history has a character for eight calls, the newest last.
	if first := strings.IndexFunc(a.History, func(r rune) bool { return r != '.' }); first < len(a.History)-8 {
		t.Errorf("the first foreign call was more than 64 calls before the alert: %s", a.History)
	}
	calls := strings.Join(a.Calls, " ")
	if !strings.Contains(calls, "umask") && !strings.Contains(calls, "kill") && !strings.Contains(calls, "fork") && !strings.Contains(calls, "clone") {
		t.Errorf("the sequence %v names no call of the attack", a.Calls)
	}

	replayed := alertsOf(t, must(t, "frail", "replay", file, "--profile", trained, "--normal-wait", "52w", "--anomaly", "1000", "--json"))
	eventually(t, "the replay gives the same alerts", func() error {
		live = alertsOf(t, must(t, "frail", "alerts", guest.Name, "--json"))
		if fmt.Sprint(replayed) != fmt.Sprint(live) {
			return fmt.Errorf("replayed\n%+v\nlive\n%+v", replayed, live)
		}
		return nil
	})

	// What it is judged by is what it was, and what the attack taught is forgotten.
	p, err := serverProfile(t, guest.Name)
	if err != nil || !p.Normal || p.Train > 64 {
		t.Errorf("after the attack %+v, %v", p, err)
	}
	runServer(t, guest, attack)
	eventually(t, "the same attack is told again", func() error {
		if again := alertsOf(t, must(t, "frail", "alerts", guest.Name, "--json")); len(again) <= len(live) {
			return fmt.Errorf("%d alerts", len(again))
		}
		return nil
	})
}

// TestTrainingOutlivesTheDaemon restarts fraild while a guest is learnt.
func TestTrainingOutlivesTheDaemon(t *testing.T) {
	begin(t)
	guest := startGuest(t, "training", metadata(analysed))
	waitGuest(t, guest)
	waitTraced(t, guest)
	runIn(t, guest, install)
	runServer(t, guest, fmt.Sprintf(serve, 100))
	before, err := serverProfile(t, guest.Name)
	if err != nil {
		t.Fatal(err)
	}
	must(t, "systemctl", "restart", "fraild.service")
	waitTraced(t, guest)
	eventually(t, "what was learnt is there again", func() error {
		after, err := serverProfile(t, guest.Name)
		if err == nil && after != before {
			err = fmt.Errorf("%+v, before the restart %+v", after, before)
		}
		return err
	})
}

// TestShortLivedProcesses checks that many processes leave nothing behind, and that one alert
// tells of all that misbehave.
func TestShortLivedProcesses(t *testing.T) {
	begin(t)
	guest := startGuest(t, "short", metadata(analysed))
	waitGuest(t, guest)
	waitTraced(t, guest)
	const jobs = `i=0; while [ $i -lt %d ]; do /tmp/busybox-job %s; i=$((i+1)); done`
	if res := runIn(t, guest, `cp /bin/busybox /tmp/busybox-job; `+fmt.Sprintf(jobs, 100, "true")); res.Status != 0 || res.Output != "" {
		t.Fatalf("jobs end with %d: %s", res.Status, res.Output)
	}
	must(t, "frail", "profile", "normalize", guest.Name+"/tmp/busybox-job")
	runIn(t, guest, fmt.Sprintf(jobs, 100, "true"))
	if got := alertsOf(t, must(t, "frail", "alerts", guest.Name, "--json")); len(got) != 0 {
		t.Fatalf("alerts of jobs that do what they always did: %+v", got)
	}
	runIn(t, guest, fmt.Sprintf(jobs, 100, "sync"))
	got := alertsOf(t, must(t, "frail", "alerts", guest.Name, "--json"))
	if len(got) != 1 || got[0].Kind != "processes" || got[0].Executable != "/tmp/busybox-job" {
		t.Errorf("alerts of 100 jobs that do something else: %+v", got)
	}
	// Killed while they sleep: these end with no call.
	runIn(t, guest, `i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done; killall -9 sleep`)
	eventually(t, "only living processes are known", func() error {
		out := must(t, "frail", "top", guest.Name, "--batch", "-n", "1")
		for _, name := range []string{" busybox-job ", " sleep "} {
			if n := strings.Count(out, name); n > 0 {
				return fmt.Errorf("%d of%sare known", n, name)
			}
		}
		return nil
	})
}
