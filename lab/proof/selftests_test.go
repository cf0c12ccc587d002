// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"frail/bpf"
	"frail/lab/direct"
)

var (
	selftests = flag.String("selftests", "/frail/selftests", "the kernel's x86 self-tests")
	only      = flag.String("only", "*", "those that run, as a pattern of file names")
	without   = flag.String("without", "", "those of them that do not, as a pattern")
)

// excluded are the self-tests that do not run at all, by the vendor of the
// host's CPU: they end the emulator and the whole host with it. Those that end
// or hang just an untraced guest need no list, see runUntraced.
var excluded = map[string][]string{
	// QEMU's TCG.
	"AuthenticAMD": {"mov_ss_trap_32", "mov_ss_trap_64"},
}

// patience is how long a guest lets a self-test run before it ends it, and how long it may
// take to come to the first one, which has no name. The host may have to share its CPU.
func patience(name string) time.Duration {
	if name == "syscall_numbering_64" { // 450,000 calls, most of them under ptrace
		return 45 * time.Minute
	}
	return 4 * time.Minute
}

// overdue is by how much a self-test may exceed that in a guest that lives.
const overdue = 40 * time.Second

// selftestsScript comes before the calls of its function. It names each
// self-test on the console: of a guest that ends or hangs, that is known.
const selftestsScript = `
for dir in selftests/root/*; do
	mkdir -p /${dir##*/}
	mv $dir/* /${dir##*/}
done
selftest() { # NAME SECONDS
	echo "selftest $1" >/dev/console
	timeout $2 selftests/tests/$1 >/out/$1.output 2>&1
	echo $? >/out/$1.status
}
`

// outcome is what one self-test did in one guest.
type outcome struct {
	status int // exit status, 128 + the signal if one ended it
	output string
}

// numbers are what may differ from run to run: addresses, times and ids.
var numbers = regexp.MustCompile(`(0x)+[0-9a-f]+|[0-9a-f]*[0-9][0-9a-f]*`)

// times are how long something took, in seconds.
var times = regexp.MustCompile(`\d+\.\d{6}`)

// byIRET is a line of fsgsbase_64: some CPUs' IRET, and so an interrupt at that moment,
// clears a null selector, which the test accepts.
var byIRET = regexp.MustCompile(`changed from (\S+) to \S+ because IRET is defective`)

// withoutTimes is the outcome as far as it does not depend on how fast the guest was.
func (o outcome) withoutTimes() outcome {
	return outcome{o.status, byIRET.ReplaceAllString(times.ReplaceAllString(o.output, "T"), "remained $1")}
}

// bySignal reports whether a signal ended the self-test.
func (o outcome) bySignal() bool { return o.status > 128 }

// withoutNumbers is the outcome as far as it does not depend on the run.
func (o outcome) withoutNumbers() outcome {
	return outcome{o.status, numbers.ReplaceAllString(o.output, "N")}
}

func (o outcome) String() string {
	return fmt.Sprintf("exit status %d\n%s", o.status, o.output)
}

// selftestGuest runs self-tests in guests of one size.
type selftestGuest struct {
	tests  []string // what runs
	config direct.Config
	fatal  map[string]string // what does not any more, and why
}

func (s *selftestGuest) cfg() direct.Config {
	cfg := s.config
	cfg.Files = map[string]string{"selftests": *selftests}
	var script strings.Builder
	script.WriteString(selftestsScript)
	for _, name := range s.tests {
		fmt.Fprintf(&script, "selftest %s %.0f\n", name, patience(name).Seconds())
	}
	script.WriteString("dmesg >/out/dmesg\n")
	cfg.Script = script.String()
	return cfg
}

// runUntraced runs the self-tests in an untraced guest. One that the guest does
// not survive is fatal: an emulated CPU has its faults. The others run again
// without it.
func (s *selftestGuest) runUntraced(t *testing.T) *direct.Result {
	t.Helper()
	for {
		res, at, err := s.watch(t)
		if err == nil {
			return res
		}
		i := slices.Index(s.tests, at)
		if i < 0 {
			t.Fatalf("untraced: %v", err)
		}
		t.Logf("the untraced guest does not survive %s: %v", at, err)
		// KVM may have had its say to that; no traced guest has run since the last look.
		for _, line := range hostLog.Warnings() {
			t.Logf("the host's kernel warns: %s", line)
		}
		s.fatal[at] = err.Error()
		s.tests = slices.Delete(s.tests, i, i+1)
	}
}

// watch runs an untraced guest to its end and returns which self-test it was at.
func (s *selftestGuest) watch(t *testing.T) (_ *direct.Result, at string, _ error) {
	t.Helper()
	ctx := testContext(t)
	g, err := direct.Start(ctx, guest(s.cfg()))
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := g.Resume(ctx); err != nil {
		return nil, "", err
	}
	for since := time.Now(); ; {
		select {
		case <-g.Exited():
			res, err := g.Wait(ctx)
			return res, lastNamed(g.Console()), err
		case <-time.After(time.Second):
		}
		if now := lastNamed(g.Console()); now != at {
			at, since = now, time.Now()
		} else if time.Since(since) > patience(at)+overdue {
			return nil, at, errors.New("it hangs")
		}
	}
}

// lastNamed returns the last self-test that a console names.
func lastNamed(console string) string {
	i := strings.LastIndex(console, "selftest ")
	if i < 0 {
		return ""
	}
	name, _, _ := strings.Cut(console[i+len("selftest "):], "\n")
	return strings.TrimSpace(name)
}

// outcomes returns what each self-test did in a guest.
func (s *selftestGuest) outcomes(t *testing.T, res *direct.Result) map[string]outcome {
	t.Helper()
	found := map[string]outcome{}
	for _, name := range s.tests {
		status, err := strconv.Atoi(strings.TrimSpace(string(res.Files[name+".status"])))
		if err != nil {
			t.Fatalf("%s has no exit status: %v\n%s", name, err, res.Output)
		}
		found[name] = outcome{status, string(res.Files[name+".output"])}
	}
	return found
}

// complaint is what a guest's kernel says when something is wrong with it.
var complaint = regexp.MustCompile(`(?:BUG|WARNING|Oops|UBSAN|Call Trace): ?.*`)

// complaints returns what a guest's kernel complained of, without what may
// differ from run to run.
func complaints(res *direct.Result) []string {
	found := complaint.FindAllString(string(res.Files["dmesg"]), -1)
	for i, c := range found {
		found[i] = numbers.ReplaceAllString(c, "N")
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// TestSelftests runs the kernel's own x86 self-tests in guests that differ in
// nothing but whether and how they are traced. All of them must end alike,
// whatever it is they do on an emulated CPU: exit status and every line of
// output. Numbers are left out only for those whose output differs between two
// untraced guests.
func TestSelftests(t *testing.T) {
	programs, err := filepath.Glob(filepath.Join(*selftests, "tests", *only))
	if err != nil || len(programs) == 0 {
		t.Fatalf("no self-tests in %s: %v", *selftests, err)
	}
	var tests []string
	for _, p := range programs {
		name := filepath.Base(p)
		if left, err := filepath.Match(*without, name); err != nil {
			t.Fatalf("parse -without %q: %v", *without, err)
		} else if left {
			continue
		}
		if slices.Contains(excluded[vendor(t)], name) {
			t.Logf("excluded on %s: %s", vendor(t), name)
			continue
		}
		tests = append(tests, name)
	}
	for _, vcpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d-vcpu", vcpus), func(t *testing.T) {
			compareSelftests(t, &selftestGuest{
				tests:  slices.Clone(tests),
				config: direct.Config{VCPUs: vcpus},
				fatal:  map[string]string{},
			})
		})
	}
}

func compareSelftests(t *testing.T, s *selftestGuest) {
	for _, line := range hostLog.Warnings() {
		t.Errorf("the host's kernel warns: %s", line)
	}
	first := s.runUntraced(t)
	second := s.runUntraced(t)
	want, again := s.outcomes(t, first), s.outcomes(t, second)
	unsteady, broken := map[string]bool{}, map[string]bool{}
	for _, name := range s.tests {
		if want[name].bySignal() || again[name].bySignal() {
			// Nothing traced has run: the emulated CPU ends it.
			broken[name] = true
			continue
		}
		want[name], again[name] = want[name].withoutTimes(), again[name].withoutTimes()
		if want[name] == again[name] {
			continue
		}
		unsteady[name] = true
		if want[name].withoutNumbers() != again[name].withoutNumbers() {
			t.Errorf("%s differs between two untraced guests:\n%s\n%s", name, want[name], again[name])
		}
	}
	known := append(complaints(first), complaints(second)...)

	got := map[string]map[string]outcome{}
	for _, mode := range exitModes {
		t.Run(mode.name, func(t *testing.T) {
			traced, err := direct.Trace(testContext(t), guest(s.cfg()), mode.exits)
			if err != nil {
				t.Fatal(err)
			}
			got[mode.name] = s.outcomes(t, traced.Result)
			calls := callsByComm(traced.Events)
			for _, name := range s.tests {
				g, w := got[mode.name][name].withoutTimes(), want[name]
				if unsteady[name] {
					g, w = g.withoutNumbers(), w.withoutNumbers()
				}
				if g != w && !broken[name] {
					t.Errorf("%s traced: %s\nuntraced: %s", name, got[mode.name][name], want[name])
				}
				if calls[commOf(name)] == 0 {
					t.Errorf("no system call of %s was recorded", name)
				}
			}
			for _, c := range complaints(traced.Result) {
				if !slices.Contains(known, c) {
					t.Errorf("the guest's kernel complains: %s", c)
				}
			}
			t.Logf("%d calls and %d returns trapped, %d events, %d vCPUs armed",
				traced.Status.Enters, traced.Status.Exits, len(traced.Events), traced.Status.ArmedVcpus)
		})
	}
	logTable(t, s, want, unsteady, broken, got)
}

// logTable logs the results as docs/proof.md has them.
func logTable(t *testing.T, s *selftestGuest, want map[string]outcome, unsteady, broken map[string]bool, got map[string]map[string]outcome) {
	t.Logf("| self-test | untraced | both | entry | lines | compared |")
	for _, name := range s.tests {
		compared := "every byte"
		switch {
		case broken[name]:
			compared = "no: a signal ends it untraced"
		case unsteady[name]:
			compared = "all but numbers"
		}
		var status []string
		for _, mode := range exitModes {
			text := "-"
			if o, ok := got[mode.name][name]; ok {
				text = strconv.Itoa(o.status)
			}
			status = append(status, text)
		}
		t.Logf("| %s | %d | %s | %d | %s |", name, want[name].status,
			strings.Join(status, " | "), strings.Count(want[name].output, "\n"), compared)
	}
	for _, name := range s.tests {
		if want[name].status != 0 {
			t.Logf("%s fails untraced: %s", name, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.fatal)) {
		t.Logf("%s ends or hangs an untraced guest: %s", name, s.fatal[name])
	}
}

// callsByComm counts the recorded system calls of threads by their name.
func callsByComm(events []bpf.Event) map[string]int {
	calls := map[string]int{}
	for i := range events {
		if events[i].Kind == bpf.EventEnter {
			calls[string(events[i].CommBytes())]++
		}
	}
	return calls
}

// commOf is what the kernel calls the threads of a program.
func commOf(program string) string {
	return program[:min(len(program), bpf.CommLen-1)]
}

// vendor returns the vendor of the host's CPU as /proc/cpuinfo has it.
func vendor(t *testing.T) string {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(info), "vendor_id")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), ":"))
}
