// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bufio"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"slices"

	"frail/tracer/ph"
	"frail/tracer/syscalls"
)

// key is one lookahead pair.
type key struct{ call, prev ph.Number }

func pairs(p *ph.Profile) map[key]ph.Pair {
	out := make(map[key]ph.Pair)
	for _, r := range p.Rows {
		for _, pair := range r.Pairs {
			out[key{r.Call, pair.Prev}] = pair
		}
	}
	return out
}

func rows(m map[key]ph.Pair) []ph.Row {
	byCall := make(map[ph.Number]*ph.Row)
	for k, pair := range m {
		r := byCall[k.call]
		if r == nil {
			r = &ph.Row{Call: k.call}
			byCall[k.call] = r
		}
		r.Pairs = append(r.Pairs, pair)
	}
	var out []ph.Row
	for _, r := range byCall {
		ph.SortPairs(r.Pairs)
		out = append(out, *r)
	}
	ph.SortRows(out)
	return out
}

// Merge returns a profile of all that a and b learnt, under a's name. It judges if both do.
// Its counts are the sums; it has yet to freeze.
func Merge(a, b *File) *File {
	m := pairs(&a.Profile)
	for k, pair := range pairs(&b.Profile) {
		old := m[k]
		m[k] = ph.Pair{Prev: k.prev, Train: old.Train | pair.Train, Test: old.Test | pair.Test}
	}
	out := &File{Domain: a.Domain, Saved: a.Saved}
	if b.Saved.After(a.Saved) {
		out.Saved = b.Saved
	}
	out.Name = a.Name
	out.Normal = a.Normal && b.Normal
	out.Train, out.Sequences = a.Train+b.Train, a.Sequences+b.Sequences
	out.LastMod = min(a.LastMod, b.LastMod)
	out.Rows = rows(m)
	return out
}

// Difference is a pair that only one of two profiles learnt, or at other distances.
type Difference struct {
	Call, Prev ph.Number
	// Only in the first and only in the second: bit i-1 for a distance of i.
	First, Second uint8
}

// Diff returns what was learnt by one of two profiles only, ordered by call.
func Diff(a, b *ph.Profile) []Difference {
	ma, mb := pairs(a), pairs(b)
	var out []Difference
	add := func(k key) {
		x, y := ma[k].Train, mb[k].Train
		if x != y {
			out = append(out, Difference{k.call, k.prev, x &^ y, y &^ x})
		}
	}
	for k := range ma {
		add(k)
	}
	for k := range mb {
		if _, both := ma[k]; !both {
			add(k)
		}
	}
	slices.SortFunc(out, func(x, y Difference) int {
		if x.Call != y.Call {
			return int(x.Call) - int(y.Call)
		}
		return int(x.Prev) - int(y.Prev)
	})
	return out
}

// Plot draws the lookahead matrix as SVG: a row for each call, a column for each earlier
// one, darker at more distances. Pairs that a normal profile does not judge by are red.
func Plot(w io.Writer, p *ph.Profile) error {
	const cell, left, top = 14, 160, 140
	var prevs []ph.Number
	seen := make(map[ph.Number]bool)
	for _, r := range p.Rows {
		for _, pair := range r.Pairs {
			if !seen[pair.Prev] {
				seen[pair.Prev] = true
				prevs = append(prevs, pair.Prev)
			}
		}
	}
	slices.Sort(prevs)
	column := make(map[ph.Number]int)
	for i, n := range prevs {
		column[n] = i
	}

	out := bufio.NewWriter(w)
	width, height := left+cell*len(prevs)+20, top+cell*len(p.Rows)+20
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="monospace" font-size="10">`+"\n",
		width, height, width, height)
	train, test := p.Count()
	fmt.Fprintf(out, "<title>%s: %d pairs learnt, %d judged by</title>\n", html.EscapeString(fmt.Sprintf("%q", p.Name)), train, test)
	fmt.Fprintf(out, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(out, `<text x="4" y="14" font-size="12">%s</text>`+"\n", html.EscapeString(fmt.Sprintf("%q", p.Name)))
	for i, n := range prevs {
		fmt.Fprintf(out, `<text transform="translate(%d %d) rotate(-90)">%s</text>`+"\n",
			left+cell*i+cell-4, top-4, html.EscapeString(n.String()))
	}
	for y, r := range p.Rows {
		fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-4, top+cell*y+cell-4, html.EscapeString(r.Call.String()))
		for _, pair := range r.Pairs {
			if pair.Train|pair.Test == 0 {
				continue
			}
			fill := "#1f4e79"
			if p.Normal && pair.Train&^pair.Test != 0 {
				fill = "#c00000"
			}
			distances := ph.Distances(pair.Train | pair.Test)
			fmt.Fprintf(out, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s" fill-opacity="%.2f"><title>%s after %s, distance %v</title></rect>`+"\n",
				left+cell*column[pair.Prev], top+cell*y, cell-1, cell-1, fill, 0.2+0.1*float64(len(distances)),
				html.EscapeString(r.Call.String()), html.EscapeString(pair.Prev.String()), distances)
		}
	}
	fmt.Fprintln(out, "</svg>")
	return out.Flush()
}

// Seccomp writes an OCI seccomp profile that permits the system calls the program was seen
// to make and refuses all others with EPERM. A container's runtime makes calls of its own
// before the program: those are not in it.
func Seccomp(w io.Writer, p *ph.Profile) error {
	type rule struct {
		Names  []string `json:"names"`
		Action string   `json:"action"`
	}
	doc := struct {
		DefaultAction   string   `json:"defaultAction"`
		DefaultErrnoRet int      `json:"defaultErrnoRet"`
		Architectures   []string `json:"architectures"`
		Syscalls        []rule   `json:"syscalls"`
	}{DefaultAction: "SCMP_ACT_ERRNO", DefaultErrnoRet: 1}
	names := make(map[string]bool)
	arches := make(map[string]bool)
	for _, n := range p.Calls() {
		table := syscalls.Table(n.Table())
		name := syscalls.Name(table, int64(n.Nr()))
		if name == "" {
			return fmt.Errorf("print seccomp profile of %q: system call %s has no name", p.Name, n)
		}
		names[name] = true
		switch table {
		case syscalls.X86_64:
			arches["SCMP_ARCH_X86_64"] = true
		case syscalls.I386:
			arches["SCMP_ARCH_X86"] = true
		case syscalls.X32:
			arches["SCMP_ARCH_X32"] = true
		}
	}
	for a := range arches {
		doc.Architectures = append(doc.Architectures, a)
	}
	r := rule{Action: "SCMP_ACT_ALLOW"}
	for n := range names {
		r.Names = append(r.Names, n)
	}
	slices.Sort(doc.Architectures)
	slices.Sort(r.Names)
	if len(r.Names) > 0 {
		doc.Syscalls = []rule{r}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(&doc)
}
