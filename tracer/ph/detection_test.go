// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"frail/bpf"
)

// process is one process of a trace.
type process struct {
	trace *Trace
	pid   int32
	calls int
}

// processes returns the processes of traces, ordered by trace and first call.
func processes(ts []*Trace) []process {
	var out []process
	for _, t := range ts {
		at := make(map[int32]int)
		for _, pid := range t.PIDs {
			i, ok := at[pid]
			if !ok {
				i = len(out)
				at[pid] = i
				out = append(out, process{trace: t, pid: pid})
			}
			out[i].calls++
		}
	}
	return out
}

// only returns the calls of one process as a trace.
func (p process) only() *Trace {
	t := &Trace{Name: p.trace.Name}
	for i, pid := range p.trace.PIDs {
		if pid == p.pid {
			t.PIDs = append(t.PIDs, pid)
			t.Calls = append(t.Calls, p.trace.Calls[i])
		}
	}
	return t
}

// scores are what a process came to with both scorers.
type scores struct {
	lfc, stide   int // highest
	alert        int // calls of the process until LFC was above 12; -1: never
	anomalous    bool
	stideAnomaly bool
}

// scorers are both scorers, trained with the same calls.
type scorers struct {
	*lab
	stide *Stide
	learn bool
}

func newScorers(tb testing.TB, program string) *scorers {
	st, err := NewStide(6, 20)
	if err != nil {
		tb.Fatal(err)
	}
	s := &scorers{lab: newLab(program), stide: st, learn: true}
	s.AddVM(1, neverNormal())
	return s
}

func (s *scorers) judge() {
	s.Control(s.exe, Normalize)
	s.AddVM(1, judging())
	s.learn = false
}

func (s *scorers) run(t *Trace, base int64) scores {
	out := scores{alert: -1}
	s.lab.run++
	n := 0
	t.Events(1, s.name, base, s.lab.run, func(ev *bpf.Event) bool {
		n++
		if p := s.namer.Describe(ev); p != nil {
			s.Process(p)
			s.stide.Process(p)
		}
		v := s.Call(ev)
		sv := s.stide.Call(ev, s.learn)
		out.lfc = max(out.lfc, int(v.LFC))
		out.stide = max(out.stide, sv.LFC)
		out.anomalous = out.anomalous || v.Miss != 0
		out.stideAnomaly = out.stideAnomaly || sv.Miss
		if out.alert < 0 && v.LFC > 12 {
			out.alert = n
		}
		return true
	})
	return out
}

// detection prints the table of docs/detection.md. Normal processes are held out by
// splitting each program's into five parts by order: four train, one is judged, in turn.
func detection(tb testing.TB, w io.Writer) {
	const folds = 5
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "program\theld out\tpH anomalous\tpH LFC>12\tstide anomalous\tstide LFC>12 of 20")
	for _, program := range []string{"sendmail", "lpr", "login", "ps"} {
		normal := processes(unmTraces(tb, program, "normal"))
		var n, anomalous, alerts, sAnomalous, sAlerts int
		for fold := range folds {
			s := newScorers(tb, program)
			for i, p := range normal {
				if i%folds != fold {
					s.run(p.only(), ForeignBase)
				}
			}
			s.judge()
			for i, p := range normal {
				if i%folds != fold {
					continue
				}
				r := s.run(p.only(), ForeignBase)
				n++
				count := func(to *int, yes bool) {
					if yes {
						*to++
					}
				}
				count(&anomalous, r.anomalous)
				count(&alerts, r.lfc > 12)
				count(&sAnomalous, r.stideAnomaly)
				count(&sAlerts, r.stide > 12)
			}
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%d\t%d\n", program, n, anomalous, alerts, sAnomalous, sAlerts)
	}
	fmt.Fprintln(tw)
	fmt.Fprintln(tw, "program\tintrusion\tprocesses\tpH anomalous\tmax LFC\tLFC>12\tcalls until alert\tprocesses alert after\tstide anomalous\tstide max of 20")
	for _, program := range []string{"sendmail", "lpr", "login", "ps"} {
		normal := unmTraces(tb, program, "normal")
		for _, intrusion := range unmTraces(tb, program, "intrusion") {
			s := newScorers(tb, program)
			for _, t := range normal {
				s.run(t, ForeignBase)
			}
			s.judge()
			ps := processes([]*Trace{intrusion})
			var anomalous, alerts, high, sAnomalous, sHigh int
			first, many := -1, "-"
			for i, p := range ps {
				r := s.run(p.only(), ForeignBase)
				if r.anomalous {
					anomalous++
					// The limit of anomalous processes of one executable.
					if anomalous == 13 {
						many = fmt.Sprint(i + 1)
					}
				}
				if r.lfc > 12 {
					alerts++
					if first < 0 {
						first = r.alert
					}
				}
				if r.stideAnomaly {
					sAnomalous++
				}
				high, sHigh = max(high, r.lfc), max(sHigh, r.stide)
			}
			until := "-"
			if first >= 0 {
				until = fmt.Sprint(first)
			}
			fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%d\t%d\n",
				program, intrusion.Name, len(ps), anomalous, high, alerts, until, many, sAnomalous, sHigh)
		}
	}
	if err := tw.Flush(); err != nil {
		tb.Fatal(err)
	}
}

// auc returns the area under the curve of scores that should be higher for attacks.
func auc(normal, attack []int) float64 {
	slices.Sort(normal)
	sum := 0.0
	for _, a := range attack {
		below, _ := slices.BinarySearch(normal, a)
		upto, _ := slices.BinarySearch(normal, a+1)
		sum += float64(below) + float64(upto-below)/2
	}
	return sum / float64(len(normal)*len(attack))
}

func adfaScores(tb testing.TB) (lfc, stide float64) {
	data, err := ReadADFA(filepath.Join(dataDir(tb), "adfa-ld"))
	if err != nil {
		tb.Fatal(err)
	}
	s := newScorers(tb, "adfa")
	for _, t := range data.Training {
		s.run(t, 0)
	}
	s.judge()
	var scores [2][2][]int
	for i, ts := range [][]*Trace{data.Validation, data.Attack} {
		for _, t := range ts {
			r := s.run(t, 0)
			scores[0][i] = append(scores[0][i], r.lfc)
			scores[1][i] = append(scores[1][i], r.stide)
		}
	}
	return auc(scores[0][0], scores[0][1]), auc(scores[1][0], scores[1][1])
}

// BenchmarkDetection prints what is detected in the public data sets, good or bad.
func BenchmarkDetection(b *testing.B) {
	dataDir(b)
	var lfc, stide float64
	for b.Loop() {
		detection(b, os.Stdout)
		lfc, stide = adfaScores(b)
	}
	b.ReportMetric(lfc, "ADFA-AUC-pH")
	b.ReportMetric(stide, "ADFA-AUC-stide")
}

func TestStide(t *testing.T) {
	s, err := NewStide(3, 4)
	if err != nil {
		t.Fatal(err)
	}
	ev := bpf.Event{Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity, Pid: 1, Tgid: 1}
	var namer Namer
	feed := func(learn bool, calls ...int64) (news, misses, lfc int) {
		if p := namer.Describe(&ev); p != nil {
			s.Process(p)
		}
		for _, nr := range calls {
			ev.Nr = nr
			v := s.Call(&ev, learn)
			if v.New {
				news++
			}
			if v.Miss {
				misses++
			}
			lfc = v.LFC
		}
		ev.Pid++
		return
	}
	if n, _, _ := feed(true, 1, 2, 3, 1, 2, 3, 1); n != 3 {
		t.Errorf("%d sequences learnt, want 123, 231, 312", n)
	}
	if n, m, _ := feed(false, 2, 3, 1, 2, 3); n != 0 || m != 0 {
		t.Errorf("known sequences: %d learnt, %d missed", n, m)
	}
	// Each pair is known, the sequence is not: 1 2 1.
	if _, m, lfc := feed(false, 1, 2, 1, 2, 3, 1, 2, 3, 1); m != 2 || lfc != 0 {
		t.Errorf("%d missed, LFC %d at the end, want 2 and 0", m, lfc)
	}
	// Told once a rise, with the calls of the sequence.
	var told []Alert
	s.Tell, s.AlertLimit = func(a *Alert) { told = append(told, *a) }, 1
	feed(false, 1, 2, 3, 1, 2, 1, 2, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 1, 2)
	if len(told) != 2 || told[0].Kind != AlertStide || told[0].Misses != 2 || told[0].Executable != "[]" ||
		!strings.HasSuffix(told[0].String(), "misses=2: - - - - - - open write open") {
		t.Errorf("told %v", told)
	}
	if got := s.Sequences(NewExecutable(1, "")); got != 3 {
		t.Errorf("%d sequences", got)
	}
	for _, bad := range [][2]int{{1, 20}, {33, 20}, {6, 0}, {6, 1025}} {
		if _, err := NewStide(bad[0], bad[1]); err == nil {
			t.Errorf("window %d, frame %d: no error", bad[0], bad[1])
		}
	}
}
