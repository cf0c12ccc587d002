// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"cmp"
	"slices"
)

// Profile is what is known of an executable, independent of how an analyser keeps it. The
// zero value knows nothing.
type Profile struct {
	// Name of the executable. The guest chose it: it may hold any byte.
	Name string
	// Normal: it judges. Frozen: it learnt nothing new for most of its training.
	Normal, Frozen bool
	// NormalTime is when a frozen profile becomes normal, on the clock of Event.Time.
	NormalTime uint64
	// Train counts calls learnt from, LastMod those since the last new pair, Sequences
	// calls that brought a new pair.
	Train, LastMod, Sequences uint64
	// Anomalies counts anomalous calls since the profile is normal.
	Anomalies uint64
	// Rows are ordered by Call, each once.
	Rows []Row
}

// Row are the pairs of one current call.
type Row struct {
	Call Number
	// Pairs are ordered by Prev, each once. None is all zero.
	Pairs []Pair
}

// Pair tells at which distances Prev came before a row's call: bit i-1 for a distance of i.
type Pair struct {
	Prev Number
	// Train is what was learnt, Test what is judged by.
	Train, Test uint8
}

// Count returns how many pairs of calls were learnt and are judged by, at whatever
// distance. "No call yet" makes no pair.
func (p *Profile) Count() (train, test int) {
	for _, r := range p.Rows {
		for _, pair := range r.Pairs {
			if pair.Prev == NoNumber {
				continue
			}
			if pair.Train != 0 {
				train++
			}
			if pair.Test != 0 {
				test++
			}
		}
	}
	return train, test
}

// NewRow returns a row of bytes indexed by symbol; number gives the call of each.
func NewRow(call Number, train, test *[256]uint8, number func(Symbol) Number) Row {
	r := Row{Call: call}
	for s := range train {
		if train[s]|test[s] != 0 {
			r.Pairs = append(r.Pairs, Pair{number(Symbol(s)), train[s], test[s]})
		}
	}
	SortPairs(r.Pairs)
	return r
}

// SortPairs orders pairs by the earlier call.
func SortPairs(pairs []Pair) {
	slices.SortFunc(pairs, func(a, b Pair) int { return cmp.Compare(a.Prev, b.Prev) })
}

// SortRows orders rows by call.
func SortRows(rows []Row) {
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.Call, b.Call) })
}

// number returns what s stands for.
func (p *profile) number(s Symbol) Number { return p.numbers[s] }

// Profile returns a copy of what is known of exe, nil when it is not known.
func (a *Analyzer) Profile(exe Executable) *Profile {
	p := a.profiles[exe]
	if p == nil {
		return nil
	}
	out := &Profile{
		Name: exe.Name(), Normal: p.normal, Frozen: p.frozen, Train: p.train, LastMod: p.lastMod,
		Sequences: p.sequences, Anomalies: p.anomalies,
	}
	if p.frozen {
		out.NormalTime = p.normalTime
	}
	for s, r := range p.rows {
		out.Rows = append(out.Rows, NewRow(p.number(s), &r.train, &r.test, p.number))
	}
	SortRows(out.Rows)
	return out
}

// Executables returns those that have a profile, ordered by VM and name.
func (a *Analyzer) Executables() []Executable {
	out := make([]Executable, 0, len(a.profiles))
	for exe := range a.profiles {
		out = append(out, exe)
	}
	slices.SortFunc(out, func(x, y Executable) int {
		return cmp.Or(cmp.Compare(x.VM, y.VM), cmp.Compare(x.Name(), y.Name()))
	})
	return out
}

// Load gives exe a profile in place of what is known of it. Threads that run it are analysed
// again when they are described anew.
// It returns false, and changes nothing, when a limit is reached or the profile has more
// calls than there are symbols.
func (a *Analyzer) Load(exe Executable, from *Profile) bool {
	calls := from.calls()
	old := a.profiles[exe]
	freed := 0
	if old != nil {
		freed = len(old.rows)
	} else if len(a.profiles) >= a.limits.Profiles {
		return false
	}
	if len(calls) > int(maxSymbol) || a.rows-freed+len(from.Rows) > a.limits.Rows {
		return false
	}
	p := newProfile(exe)
	for i, n := range calls {
		p.symbols[n] = Symbol(i + 1)
		p.numbers[i+1] = n
	}
	symbol := func(n Number) Symbol {
		switch n {
		case OtherNumber:
			return other
		case NoNumber:
			return none
		}
		return p.symbols[n]
	}
	p.normal, p.frozen, p.normalTime = from.Normal, from.Frozen, from.NormalTime
	p.train, p.lastMod, p.sequences, p.anomalies = from.Train, from.LastMod, from.Sequences, from.Anomalies
	p.forkWindow = emptyWindow
	for _, fr := range from.Rows {
		r := new(row)
		for _, pair := range fr.Pairs {
			r.train[symbol(pair.Prev)], r.test[symbol(pair.Prev)] = pair.Train, pair.Test
		}
		p.rows[symbol(fr.Call)] = r
	}
	a.rows += len(from.Rows) - freed
	for k, t := range a.threads {
		if t.profile.exe == exe {
			delete(a.threads, k)
		}
	}
	a.profiles[exe] = p
	return true
}

// calls returns the calls that need a symbol, in order.
func (p *Profile) calls() []Number {
	seen := make(map[Number]bool)
	for _, r := range p.Rows {
		seen[r.Call] = true
		for _, pair := range r.Pairs {
			seen[pair.Prev] = true
		}
	}
	delete(seen, OtherNumber)
	delete(seen, NoNumber)
	out := make([]Number, 0, len(seen))
	for n := range seen {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Calls returns the system calls of the profile, in order, without [OtherNumber].
func (p *Profile) Calls() []Number { return p.calls() }

// Distances returns the distances that the bits of a pair stand for.
func Distances(bits uint8) []int {
	var out []int
	for i := range Pairs {
		if bits>>i&1 != 0 {
			out = append(out, i+1)
		}
	}
	return out
}
