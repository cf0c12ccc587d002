// SPDX-License-Identifier: Apache-2.0

package format

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"frail/bpf"
)

// withData is an event with what its arguments point to.
func withData(change func(*bpf.Event), pieces ...bpf.Piece) func(contents ...string) *bpf.Data {
	return func(contents ...string) *bpf.Data {
		d := &bpf.Data{Head: *event(change)}
		d.Head.Flags |= bpf.EventHasData
		for i, p := range pieces {
			p.Len = uint32(copy(d.Bytes[d.Len:], contents[i]))
			d.Piece[i] = p
			d.Len += p.Len
		}
		return d
	}
}

var (
	opened  = withData(func(*bpf.Event) {}, bpf.Piece{Arg: 1, Kind: bpf.ReadString})
	faulted = withData(func(*bpf.Event) {}, bpf.Piece{Arg: 1, Kind: bpf.ReadString, Flags: bpf.PieceFault})
	written = withData(func(ev *bpf.Event) { ev.Nr, ev.Args = 1, [6]uint64{2, 0x7ffd5b1c0f10, 100} },
		bpf.Piece{Arg: 1, Kind: bpf.ReadCounted, Flags: bpf.PieceCut})
	haveRead = withData(func(ev *bpf.Event) { exit(4)(ev); ev.Nr = 0 }, bpf.Piece{Arg: 1, Kind: bpf.ReadReturned})
)

func TestTextData(t *testing.T) {
	const who = "cat[312/313]                     "
	f := new(Text)
	for _, tc := range []struct {
		d    *bpf.Data
		want string
	}{
		{opened("/etc/hostname"), `openat(AT_FDCWD, "/etc/hostname", O_RDONLY|O_CLOEXEC)`},
		{opened("\x1b[31m\n"), `openat(AT_FDCWD, "\33[31m\n", O_RDONLY|O_CLOEXEC)`},
		{faulted("/et"), `openat(AT_FDCWD, 0x7ffd5b1c0f10, O_RDONLY|O_CLOEXEC)`},
		{written("ab"), `write(2, "ab"..., 100)`},
		{haveRead("a\x00b\n"), `... read("a\0b\n") = 4`},
	} {
		if got, want := string(f.AppendData(nil, tc.d)), who+tc.want+"\n"; got != want {
			t.Errorf("%q\nwant %q", got, want)
		}
	}
	// The next event is not shown with it.
	if got := string(f.AppendEvent(nil, event(func(*bpf.Event) {}))); !strings.Contains(got, "AT_FDCWD, 0x7ffd5b1c0f10,") {
		t.Errorf("an event without data: %q", got)
	}
}

func TestJSONData(t *testing.T) {
	f := &JSON{Decode: true}
	for _, tc := range []struct {
		d                *bpf.Data
		data, text, left string
	}{
		{opened("/a\"b\\\xff\n"), `[{"arg":1,"kind":"string","bytes":"/a\"b\\\\\\xff\\x0a"}]`, `AT_FDCWD, "/a\"b\\\377\n", O_RDONLY|O_CLOEXEC`, ""},
		{faulted(""), `[{"arg":1,"kind":"string","bytes":"","fault":true}]`, `AT_FDCWD, 0x7ffd5b1c0f10, O_RDONLY|O_CLOEXEC`, ""},
		{written("ab"), `[{"arg":1,"kind":"bytes","bytes":"ab","cut":true}]`, `2, "ab"..., 100`, ""},
		{haveRead("text"), `[{"arg":1,"kind":"bytes","bytes":"text"}]`, "4", `("text")`},
	} {
		line := f.AppendData(nil, tc.d)
		var got struct {
			Data json.RawMessage
			Text string
			Left string
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if string(got.Data) != tc.data || got.Text != tc.text || got.Left != tc.left {
			t.Errorf("%s\nwant data %s, text %q, left %q", line, tc.data, tc.text, tc.left)
		}
	}
	if line := f.AppendEvent(nil, event(func(*bpf.Event) {})); bytes.Contains(line, []byte(`"data"`)) {
		t.Errorf("an event without data: %s", line)
	}
}

func TestPerfettoData(t *testing.T) {
	f := new(Perfetto)
	b := f.AppendData(f.AppendData(nil, opened("/etc/hostname")), haveRead("text"))
	for _, want := range []string{`AT_FDCWD, "/etc/hostname", O_RDONLY|O_CLOEXEC`, `("text")`} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("no %q in %q", want, b)
		}
	}
}
