// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"os"
	"path/filepath"
	"testing"

	"frail/bpf"
)

// dataDir returns the directory of the public data sets, which is beside the repository's,
// and skips the test where there is none. $FRAIL_DATA names another.
func dataDir(tb testing.TB) string {
	tb.Helper()
	for _, dir := range []string{os.Getenv("FRAIL_DATA"), "../../../shared/data"} {
		if st, err := os.Stat(filepath.Join(dir, "unm")); dir != "" && err == nil && st.IsDir() {
			return dir
		}
	}
	tb.Skip("the data sets are not here: set FRAIL_DATA to the directory that holds unm and adfa-ld")
	return ""
}

func unmTraces(tb testing.TB, parts ...string) []*Trace {
	tb.Helper()
	ts, err := ReadUNMDir(filepath.Join(append([]string{dataDir(tb), "unm"}, parts...)...))
	if err != nil {
		tb.Fatal(err)
	}
	return ts
}

// result is what one process of a trace came to.
type result struct{ calls, anomalies, maxLFC, first int }

// lab is an analyser for traces of one program.
type lab struct {
	*Analyzer
	run   uint32
	name  string
	exe   Executable
	namer Namer
}

func newLab(name string) *lab {
	return &lab{Analyzer: New(DefaultLimits()), name: name, exe: NewExecutable(1, name)}
}

func (l *lab) call(ev *bpf.Event) Verdict {
	if p := l.namer.Describe(ev); p != nil {
		l.Process(p)
	}
	return l.Call(ev)
}

// feed analyses a trace and returns what each process came to.
func (l *lab) feed(t *Trace) map[int32]*result {
	l.run++
	out := make(map[int32]*result)
	t.Events(1, l.name, ForeignBase, l.run, func(ev *bpf.Event) bool {
		v := l.call(ev)
		r := out[ev.Pid]
		if r == nil {
			r = &result{first: -1}
			out[ev.Pid] = r
		}
		if v.Miss != 0 {
			if r.anomalies == 0 {
				r.first = r.calls
			}
			r.anomalies++
		}
		r.calls++
		r.maxLFC = max(r.maxLFC, int(v.LFC))
		return true
	})
	return out
}

// neverNormal keeps a profile learning until it is told to judge.
func neverNormal() Settings {
	s := DefaultSettings()
	s.NormalWait = 1 << 62
	s.TolerizeLimit, s.AnomalyLimit = Frame, 1<<31
	s.ProcessLimit = 63
	return s
}

func judging() Settings {
	s := neverNormal()
	s.Learn = false
	return s
}

func trained(tb testing.TB, program string) *lab {
	l := newLab(program)
	l.AddVM(1, neverNormal())
	for _, t := range unmTraces(tb, program, "normal") {
		l.feed(t)
	}
	l.Control(l.exe, Normalize)
	l.AddVM(1, judging())
	return l
}

// The figures that the design gives, measured independently of this code; the pairs of
// login and ps are what this code measures.
func TestExpectations(t *testing.T) {
	for _, tc := range []struct {
		program      string
		pairs, calls int
		lfc          map[string]int // highest of any process, by intrusion
	}{
		{"sendmail", 934, 53, map[string]int{
			"fwd-loops-1.int": 34, "fwd-loops-2.int": 11, "fwd-loops-3.int": 35, "fwd-loops-4.int": 33,
			"fwd-loops-5.int": 20, "sm-10763.int": 55, "sm-10801.int": 55, "sm-10814.int": 55,
			"sm-280.int": 27, "sm-314.int": 28,
		}},
		{"lpr", 440, 37, map[string]int{"lprcp.int": 23}},
		{"login", 619, 46, map[string]int{"homegrown.int": 32, "recovered.int": 59}},
		{"ps", 249, 22, map[string]int{"homegrown.int": 13, "recovered.int": 14}},
	} {
		t.Run(tc.program, func(t *testing.T) {
			l := trained(t, tc.program)
			if pairs, calls := l.Pairs(l.exe); pairs != tc.pairs || calls != tc.calls {
				t.Errorf("%d pairs over %d calls, want %d over %d", pairs, calls, tc.pairs, tc.calls)
			}
			// What it was trained with is normal, to the last call.
			for _, tr := range unmTraces(t, tc.program, "normal") {
				for pid, r := range l.feed(tr) {
					if r.anomalies != 0 {
						t.Errorf("%s: process %d has %d anomalies", tr.Name, pid, r.anomalies)
					}
				}
			}
			for _, tr := range unmTraces(t, tc.program, "intrusion") {
				high, anomalous, n := 0, 0, 0
				for _, r := range l.feed(tr) {
					high = max(high, r.maxLFC)
					n++
					if r.anomalies > 0 {
						anomalous++
					}
				}
				if want, ok := tc.lfc[tr.Name]; !ok || high != want {
					t.Errorf("%s: LFC %d, want %d", tr.Name, high, want)
				}
				if tc.program == "lpr" && anomalous != n {
					t.Errorf("%s: %d of %d processes are anomalous, want all", tr.Name, anomalous, n)
				}
			}
		})
	}
}
