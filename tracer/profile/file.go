// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"frail/tracer/ph"
	"frail/tracer/syscalls"
)

const (
	// Version of the file format. Another version is refused: version 1 was of the programs
	// that a name was of, not of executables.
	Version = 2

	// MaxBytes bounds a file: the largest possible profile, 253 calls with all pairs,
	// takes less.
	MaxBytes = 16 << 20

	magic = "frail-profile"
)

// ErrCorrupt is in the chain of errors about a file that is damaged.
var ErrCorrupt = errors.New("corrupt profile")

// File is a profile with what is to be known of where it comes from. Profile.NormalTime is
// not used: NormalAt has its meaning.
type File struct {
	ph.Profile
	// Domain is the UUID of the libvirt domain it was learnt in; may be empty.
	Domain string
	// Saved is when.
	Saved time.Time
	// NormalAt is when a frozen profile becomes normal.
	NormalAt time.Time
}

// document is the JSON of a file.
type document struct {
	Executable string     `json:"executable"` // quoted as in Go: a name may hold any byte
	Domain     string     `json:"domain,omitempty"`
	Saved      time.Time  `json:"saved"`
	Window     int        `json:"window"`
	Normal     bool       `json:"normal"`
	Frozen     bool       `json:"frozen"`
	NormalAt   *time.Time `json:"normal_at,omitempty"`
	Train      uint64     `json:"train"`
	LastMod    uint64     `json:"last_mod"`
	Sequences  uint64     `json:"sequences"`
	Anomalies  uint64     `json:"anomalies"`
	Rows       []rowJSON  `json:"rows"`
}

type rowJSON struct {
	Call  string     `json:"call"`
	Pairs []pairJSON `json:"pairs"`
}

type pairJSON struct {
	Prev  string `json:"prev"`
	Train uint8  `json:"train"`
	Test  uint8  `json:"test"`
}

// Encode returns the file's bytes. The same profile always gives the same.
func Encode(f *File) ([]byte, error) {
	d := document{
		Executable: strconv.QuoteToASCII(f.Name), Domain: f.Domain, Saved: f.Saved.UTC(), Window: ph.Window,
		Normal: f.Normal, Frozen: f.Frozen, Train: f.Train, LastMod: f.LastMod, Sequences: f.Sequences, Anomalies: f.Anomalies,
	}
	if f.Frozen {
		at := f.NormalAt.UTC()
		d.NormalAt = &at
	}
	for _, r := range f.Rows {
		row := rowJSON{Call: r.Call.String()}
		for _, p := range r.Pairs {
			row.Pairs = append(row.Pairs, pairJSON{p.Prev.String(), p.Train, p.Test})
		}
		d.Rows = append(d.Rows, row)
	}
	body, err := json.Marshal(&d)
	if err != nil {
		return nil, fmt.Errorf("encode profile: %w", err)
	}
	body = append(body, '\n')
	sum := sha256.Sum256(body)
	return append(fmt.Appendf(nil, "%s %d %x\n", magic, Version, sum), body...), nil
}

// Decode parses a file. An error wraps [ErrCorrupt] unless the file is of another version.
func Decode(r io.Reader) (*File, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read profile: %w", err)
	}
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrCorrupt, MaxBytes)
	}
	head, body, ok := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(head))
	if !ok || len(fields) != 3 || fields[0] != magic {
		return nil, fmt.Errorf("%w: not a profile", ErrCorrupt)
	}
	if fields[1] != strconv.Itoa(Version) {
		return nil, fmt.Errorf("profile of format %q: this version reads %d", fields[1], Version)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != fields[2] {
		return nil, fmt.Errorf("%w: the hash is not that of the content", ErrCorrupt)
	}
	var d document
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if d.Window != ph.Window {
		return nil, fmt.Errorf("profile of a window of %d calls: this version has %d", d.Window, ph.Window)
	}
	return d.file()
}

func (d *document) file() (*File, error) {
	name, err := strconv.Unquote(d.Executable)
	if err != nil {
		return nil, fmt.Errorf("%w: executable %s", ErrCorrupt, d.Executable)
	}
	f := &File{Domain: d.Domain, Saved: d.Saved}
	f.Name, f.Normal, f.Frozen = name, d.Normal, d.Frozen
	f.Train, f.LastMod, f.Sequences, f.Anomalies = d.Train, d.LastMod, d.Sequences, d.Anomalies
	if f.LastMod > f.Train {
		return nil, fmt.Errorf("%w: %d calls since the last new pair of %d in all", ErrCorrupt, f.LastMod, f.Train)
	}
	if d.NormalAt != nil {
		f.NormalAt = *d.NormalAt
	}
	seen := make(map[ph.Number]bool)
	for _, r := range d.Rows {
		call, err := parseNumber(r.Call)
		if err != nil {
			return nil, err
		}
		if seen[call] || call == ph.NoNumber {
			return nil, fmt.Errorf("%w: row of %q", ErrCorrupt, r.Call)
		}
		seen[call] = true
		row := ph.Row{Call: call}
		prevs := make(map[ph.Number]bool)
		for _, p := range r.Pairs {
			prev, err := parseNumber(p.Prev)
			if err != nil {
				return nil, err
			}
			if prevs[prev] {
				return nil, fmt.Errorf("%w: pair of %q and %q twice", ErrCorrupt, r.Call, p.Prev)
			}
			prevs[prev] = true
			row.Pairs = append(row.Pairs, ph.Pair{Prev: prev, Train: p.Train, Test: p.Test})
		}
		ph.SortPairs(row.Pairs)
		f.Rows = append(f.Rows, row)
	}
	ph.SortRows(f.Rows)
	return f, nil
}

// parseNumber is the opposite of [ph.Number.String].
func parseNumber(s string) (ph.Number, error) {
	switch s {
	case "-":
		return ph.NoNumber, nil
	case "?":
		return ph.OtherNumber, nil
	}
	table := syscalls.X86_64
	name := s
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		switch s[i+1:] {
		case "32":
			table = syscalls.I386
		case "x32":
			table = syscalls.X32
		default:
			return 0, fmt.Errorf("%w: system call table of %q", ErrCorrupt, s)
		}
		name = s[:i]
	}
	nr, ok := syscalls.Number(table, name)
	if !ok {
		var err error
		if nr, err = strconv.Atoi(name); err != nil || nr < 0 {
			return 0, fmt.Errorf("%w: unknown system call %q", ErrCorrupt, s)
		}
	}
	n := ph.NumberOf(int(table), int64(nr))
	if n == ph.OtherNumber {
		return 0, fmt.Errorf("%w: system call %q is out of range", ErrCorrupt, s)
	}
	return n, nil
}
