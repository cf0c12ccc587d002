// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorded is the result of a cell that printed what a run of the lab's tests did, in
// pieces as small as they come.
func recorded(t *testing.T, name string) *result {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	r := &result{cell: cell{"bookworm", "amd", "lab-proof"}, release: "6.1.0-56-amd64", took: 450 * time.Second}
	l := &lines{each: r.output.read}
	for part := range slices.Chunk(data, 100) {
		l.Write(part)
	}
	return r
}

func TestOutput(t *testing.T) {
	for _, tc := range []struct {
		file                                         string
		err                                          error
		passed, failed, skipped, unfinished, reports int
		problem                                      string
	}{
		{"testdata/passed.txt", nil, 15, 0, 0, 0, 11, ""},
		{"testdata/passed.txt", errors.New("exit status 2"), 15, 0, 0, 0, 11, "failed: exit status 2"},
		{"testdata/failed.txt", errors.New("exit status 2"), 3, 3, 1, 0, 0, "failed: 3 tests"},
		{"testdata/cut.txt", errors.New("exit status 2"), 0, 0, 0, 5, 3, "failed: cut off in TestTruth/1vcpu/entry/pti=on"},
		{os.DevNull, nil, 0, 0, 0, 0, 0, "failed: no test ran"},
	} {
		r := recorded(t, tc.file)
		r.err = tc.err
		got := []int{len(r.ended(passed)), len(r.ended(failed)), len(r.ended(skipped)), len(r.ended("")), len(r.reports)}
		if want := []int{tc.passed, tc.failed, tc.skipped, tc.unfinished, tc.reports}; !slices.Equal(got, want) {
			t.Errorf("%s: passed, failed, skipped, unfinished, reports: %v, want %v", tc.file, got, want)
		}
		if r.problem() != tc.problem {
			t.Errorf("%s: %q, want %q", tc.file, r.problem(), tc.problem)
		}
	}
}

// Every cell runs once, two at a time, and no two of one host and vendor.
func TestSchedule(t *testing.T) {
	var results []*result
	for _, c := range cells {
		results = append(results, &result{cell: c})
	}
	var mu sync.Mutex
	running, most := map[cell]bool{}, 0
	ran := map[cell]int{}
	schedule(results, func(r *result) {
		place := cell{host: r.host, vendor: r.vendor}
		mu.Lock()
		if running[place] {
			t.Errorf("%v runs beside another one of its host", r.cell)
		}
		running[place] = true
		most = max(most, len(running))
		ran[r.cell]++
		mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		mu.Lock()
		delete(running, place)
		mu.Unlock()
	})
	for _, c := range cells {
		if ran[c] != 1 {
			t.Errorf("%v ran %d times", c, ran[c])
		}
	}
	if most != parallel {
		t.Errorf("%d cells at a time, want %d", most, parallel)
	}
}

func TestLines(t *testing.T) {
	var b strings.Builder
	l := &lines{each: func(line string) error {
		b.WriteString("a: " + line + "\n")
		return nil
	}}
	for _, part := range []string{"one\ntw", "o\n", "", "\nrest"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("Write(%q) returned %d, %v", part, n, err)
		}
	}
	l.flush()
	if want := "a: one\na: two\na: \na: rest\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestTables(t *testing.T) {
	var b strings.Builder
	bad := recorded(t, "testdata/failed.txt")
	writeTables(&b, []*result{recorded(t, "testdata/passed.txt"), bad})
	for _, want := range []string{
		"| bookworm | 6.1.0-56-amd64 | amd | lab-proof | 15 | 0 | 0 | 7.5 | passed |\n",
		"| bookworm | 6.1.0-56-amd64 | amd | lab-proof | 3 | 3 | 1 | 7.5 | failed: 3 tests |\n",
		"bookworm/amd/lab-proof: FAIL: TestNewKernel\n",
		"bookworm/amd/lab-proof: FAIL: TestNewKernel/reset/nokaslr\n\tkernels_test.go:53: wait for the guest: limit of 3m0s; its console:\n",
		"bookworm/amd/lab-proof: FAIL: TestNewKernel/kexec/nokaslr\n\tkernels_test.go:59: generation 1, want 2\n\tkernels_test.go:61: ",
		"bookworm/amd/lab-proof: SKIP: TestRefusedProtected\n",
		"| bookworm | amd | TestTruth/2vcpu/entry/pti=on | 96 | 3533 | 0 | 0 | 0 | 3334 | 95.05 % | 163 | 0 |\n",
		"| bookworm | amd | TestKnown/both | 25 | 5643 | 0 | 0 | 0 | 5598 | 99.41 % | 33 | 0 |\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestSelectCells(t *testing.T) {
	for _, tc := range []struct {
		names string
		want  int
	}{
		{"", len(cells)},
		{"bookworm", 3},
		{"bookworm/amd trixie/intel", 3},
		{"sid/amd/lab-proof", 1},
		{"bookworm bookworm/amd", 3},
	} {
		if got, err := selectCells(strings.Fields(tc.names)); err != nil || len(got) != tc.want {
			t.Errorf("%q: %v, %v, want %d", tc.names, got, err, tc.want)
		}
	}
	for _, name := range []string{"book", "sid/intel", "bookworm/amd/lab-proof/x"} {
		if got, err := selectCells([]string{"bookworm", name}); err == nil {
			t.Errorf("%q: %v, want an error", name, got)
		}
	}
}
