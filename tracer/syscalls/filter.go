// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"frail/bpf"
)

// MaxFilter bounds the text of a filter, in bytes: all names of all tables fit four times.
const MaxFilter = 32 << 10

// maxNear bounds how many names an error proposes instead of an unknown one.
const maxNear = 3

// Filter is a set of system calls to see or to leave out. The zero value sees all.
type Filter struct {
	// Match says how Numbers decides, by table: one of bpf's Match constants.
	Match [bpf.Tables]uint32
	// Numbers are the sets, by table: bit nr%64 of word nr/64.
	Numbers [bpf.Tables][bpf.Syscalls / 64]uint64
}

// All reports whether f lets every system call pass.
func (f *Filter) All() bool {
	return f.Match == [bpf.Tables]uint32{}
}

// ParseFilter reads a list of system calls separated by commas: "openat,execve". A
// leading "!" turns it into all but these: "!futex,poll". The empty string is no filter.
// A class of strace's stands for all calls of it: "%file,close"; see [Classes].
//
// A name stands for the call in every table that has it; a suffix names one table, as in
// strace: "openat@64", "openat@32", "openat@x32". A number is of the 64-bit table unless
// it has a suffix.
func ParseFilter(s string) (Filter, error) {
	var f Filter
	if len(s) > MaxFilter {
		return f, fmt.Errorf("system call filter is longer than %d bytes", MaxFilter)
	}
	s = strings.TrimSpace(s)
	if s == "" {
		return f, nil
	}
	match := bpf.MatchOnly
	if rest, found := strings.CutPrefix(s, "!"); found {
		s, match = rest, bpf.MatchExcept
	}
	for t := range f.Match {
		f.Match[t] = match
	}
	for item := range strings.SplitSeq(s, ",") {
		if err := f.add(strings.TrimSpace(item)); err != nil {
			return Filter{}, err
		}
	}
	return f, nil
}

// add puts one item of a list into the sets.
func (f *Filter) add(item string) error {
	name, suffix, hasSuffix := strings.Cut(item, "@")
	switch {
	case name == "":
		return errors.New("empty name in system call filter")
	case strings.HasPrefix(name, "!"):
		return fmt.Errorf("system call filter: \"!\" before %q: it may only start the list, and then holds for all of it", name[1:])
	}
	tables := []Table{X86_64, I386, X32}
	if hasSuffix {
		t, err := parseTable(suffix)
		if err != nil {
			return fmt.Errorf("system call filter %q: %w", item, err)
		}
		tables = []Table{t}
	}

	if class, found := strings.CutPrefix(name, "%"); found {
		return f.addClass(class, tables)
	}
	if name[0] >= '0' && name[0] <= '9' {
		nr, err := strconv.ParseUint(name, 10, 32)
		if err != nil || nr >= uint64(bpf.Syscalls) {
			return fmt.Errorf("system call filter %q: numbers go from 0 to %d", item, bpf.Syscalls-1)
		}
		f.set(tables[0], int(nr))
		return nil
	}

	if !f.addName(name, tables) {
		return unknown(name, tables, hasSuffix)
	}
	return nil
}

// addName puts a call into the sets of those tables that have it, and reports whether one
// does.
func (f *Filter) addName(name string, tables []Table) bool {
	found := false
	for _, t := range tables {
		if nr, ok := Number(t, name); ok {
			f.set(t, nr)
			found = true
		}
	}
	return found
}

// addClass puts the calls of a class into the sets.
func (f *Filter) addClass(name string, tables []Table) error {
	calls, ok := classes[name]
	if !ok {
		return fmt.Errorf("unknown class %q of system calls: one of %%%s", "%"+name, strings.Join(Classes(), ", %"))
	}
	for call := range strings.FieldsSeq(calls) {
		f.addName(call, tables)
	}
	return nil
}

func (f *Filter) set(t Table, nr int) {
	f.Numbers[t][nr/64] |= 1 << (nr % 64)
	if t == X32 && nr >= firstX32 {
		// Kernels before 5.4 take these numbers without bit 30 too.
		f.Numbers[X86_64][nr/64] |= 1 << (nr % 64)
	}
}

// firstX32 is the first number that only x32 uses.
const firstX32 = 512

func parseTable(suffix string) (Table, error) {
	for _, t := range []Table{X86_64, I386, X32} {
		if suffix == t.String() {
			return t, nil
		}
	}
	return 0, fmt.Errorf("unknown table %q: one of 64, 32, x32", suffix)
}

// unknown is the error for a name none of the tables has.
func unknown(name string, tables []Table, hasSuffix bool) error {
	where := ""
	if hasSuffix {
		where = " in table " + tables[0].String()
	}
	near := Near(name, tables...)
	if len(near) == 0 {
		return fmt.Errorf("unknown system call %q%s", name, where)
	}
	return fmt.Errorf("unknown system call %q%s: did you mean %s?", name, where, strings.Join(near, ", "))
}

// Near returns up to three names of the tables that look like name, the nearest first.
func Near(name string, tables ...Table) []string {
	return Nearest(strings.ToLower(name), func(yield func(string) bool) {
		for _, t := range tables {
			for _, n := range t.names() {
				if n != "" && !yield(n) {
					return
				}
			}
		}
	})
}

// Nearest returns up to three of the names that look like name, the nearest first.
func Nearest(name string, names iter.Seq[string]) []string {
	type candidate struct {
		name string
		dist int
	}
	// Longer than any name by more than the distance allowed: nothing is near.
	const maxName = 64
	if len(name) > maxName {
		return nil
	}
	limit := 1 + len(name)/4
	seen := make(map[string]bool)
	var found []candidate
	for n := range names {
		if seen[n] {
			continue
		}
		seen[n] = true
		d := distance(name, n)
		if len(name) >= 3 && (strings.HasPrefix(n, name) || strings.HasPrefix(name, n) && len(n) >= 3) {
			d = min(d, limit)
		}
		if d <= limit {
			found = append(found, candidate{n, d})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.dist, b.dist), cmp.Compare(a.name, b.name))
	})
	var near []string
	for _, c := range found[:min(len(found), maxNear)] {
		near = append(near, c.name)
	}
	return near
}

// distance is the number of letters to insert, delete, replace or swap with the next one
// to make b of a.
func distance(a, b string) int {
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
