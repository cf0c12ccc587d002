// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"archive/zip"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"frail/bpf"
)

// Bounds of what is read of a data set: the largest there is has a million calls.
const (
	maxTraceCalls  = 64 << 20
	maxArchiveFile = 64 << 20
)

// Trace is a recorded sequence of calls: of one file, whose processes are interleaved as
// they ran.
type Trace struct {
	// Name is the file's, without its directory.
	Name string
	// PIDs and Calls are as long as each other.
	PIDs  []int32
	Calls []int32
}

// ForeignBase is added to the numbers of a trace that was not recorded on Linux: what they
// mean to Linux, such as fork or exit, they do not mean.
const ForeignBase = 600

// Events calls f for each call as the event of a traced guest: of the given VM and
// executable, with base added to the number: 0 for i386 Linux, or [ForeignBase]. A
// process's first call is a thread never seen before. Every trace of a VM takes a sequence
// number of its own in run, which keeps the processes of different traces apart. It stops
// at the first false.
func (t *Trace) Events(vm uint32, comm string, base int64, run uint32, f func(*bpf.Event) bool) {
	ev := bpf.Event{Vm: vm, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity | bpf.EventNr}
	if base == 0 {
		ev.Insn = bpf.InsnSyscall32
	}
	copy(ev.Comm[:bpf.CommLen-1], comm)
	for i, nr := range t.Calls {
		ev.Pid, ev.Tgid = t.PIDs[i], t.PIDs[i]
		ev.Task = uint64(run)<<32 | uint64(uint32(ev.Pid))<<8
		ev.Cr3 = ev.Task << 12 & (1<<51 - 1)
		// A data set has no return from fork by which a child could be told.
		ev.Nr = base + int64(nr)
		ev.Time++
		if !f(&ev) {
			return
		}
	}
}

// ReadUNM reads a trace of the University of New Mexico: lines of a process id and a
// system call's number. A name that ends in .gz is of a compressed one.
func ReadUNM(path string) (*Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read trace: %w", err)
	}
	defer f.Close()
	var r io.Reader = f
	name := filepath.Base(path)
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, fmt.Errorf("read trace %s: %w", path, err)
		}
		defer z.Close()
		r, name = z, strings.TrimSuffix(name, ".gz")
	}
	t, err := parseUNM(r)
	if err != nil {
		return nil, fmt.Errorf("read trace %s: %w", path, err)
	}
	t.Name = name
	return t, nil
}

func parseUNM(r io.Reader) (*Trace, error) {
	t := new(Trace)
	s := bufio.NewScanner(r)
	for line := 1; s.Scan(); line++ {
		fields := strings.Fields(s.Text())
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("line %d: %d fields, want a process id and a number", line, len(fields))
		}
		pid, err := strconv.ParseInt(fields[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("line %d: process id: %w", line, err)
		}
		nr, err := strconv.ParseInt(fields[1], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("line %d: system call: %w", line, err)
		}
		if err := t.add(pid, nr); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
	}
	return t, s.Err()
}

func (t *Trace) add(pid, nr int64) error {
	if len(t.Calls) == maxTraceCalls {
		return fmt.Errorf("more than %d calls", maxTraceCalls)
	}
	t.PIDs = append(t.PIDs, int32(pid))
	t.Calls = append(t.Calls, int32(nr))
	return nil
}

// ReadUNMDir reads all traces of a directory, in the order of their names.
func ReadUNMDir(dir string) ([]*Trace, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read traces: %w", err)
	}
	var out []*Trace
	for _, e := range entries {
		t, err := ReadUNM(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// ADFA is the ADFA Linux data set: i386 system calls, one trace a process.
type ADFA struct{ Training, Validation, Attack []*Trace }

// ReadADFA reads the data set from its zip archive, or from the one ADFA-LD.zip in a
// directory.
func ReadADFA(path string) (*ADFA, error) {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, "ADFA-LD.zip")
	}
	z, err := zip.OpenReader(path)
	if err != nil {
		return nil, fmt.Errorf("read ADFA-LD: %w", err)
	}
	defer z.Close()
	a := new(ADFA)
	for _, f := range z.File {
		if f.FileInfo().IsDir() || !strings.HasSuffix(f.Name, ".txt") || strings.Contains(f.Name, "__MACOSX") {
			continue
		}
		var to *[]*Trace
		switch {
		case strings.Contains(f.Name, "/Training_Data_Master/"):
			to = &a.Training
		case strings.Contains(f.Name, "/Validation_Data_Master/"):
			to = &a.Validation
		case strings.Contains(f.Name, "/Attack_Data_Master/"):
			to = &a.Attack
		default:
			continue
		}
		t, err := readADFA(f)
		if err != nil {
			return nil, fmt.Errorf("read ADFA-LD: %s: %w", f.Name, err)
		}
		*to = append(*to, t)
	}
	if len(a.Training) == 0 {
		return nil, errors.New("read ADFA-LD: the archive holds no Training_Data_Master")
	}
	for _, ts := range []*[]*Trace{&a.Training, &a.Validation, &a.Attack} {
		slices.SortFunc(*ts, func(x, y *Trace) int { return strings.Compare(x.Name, y.Name) })
	}
	return a, nil
}

func readADFA(f *zip.File) (*Trace, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	s := bufio.NewScanner(io.LimitReader(r, maxArchiveFile))
	s.Split(bufio.ScanWords)
	t := &Trace{Name: strings.TrimSuffix(f.Name[strings.LastIndexByte(f.Name, '/')+1:], ".txt")}
	if i := strings.Index(f.Name, "/Attack_Data_Master/"); i >= 0 {
		t.Name = strings.TrimSuffix(f.Name[i+len("/Attack_Data_Master/"):], ".txt")
	}
	for s.Scan() {
		nr, err := strconv.ParseInt(s.Text(), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("system call: %w", err)
		}
		if err := t.add(1, nr); err != nil {
			return nil, err
		}
	}
	return t, s.Err()
}
