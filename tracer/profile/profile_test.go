// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"frail/bpf"
	"frail/tracer/ph"
)

const domain = "5e7f3f3e-5bd0-4b1f-8df4-0d3a6a5f7b11"

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// learnt returns the profile of a program that made these calls, 64-bit.
func learnt(name string, calls ...int64) *File {
	a := ph.New(ph.DefaultLimits())
	a.AddVM(1, ph.DefaultSettings())
	ev := bpf.Event{Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity, Pid: 1, Tgid: 1, Who: 1}
	p := bpf.Process{Head: ev, Known: bpf.ProcessExe}
	copy(p.Exe[:], name)
	a.Process(&p)
	exe := ph.ExecutableOf(&p)
	for _, nr := range calls {
		ev.Nr = nr
		a.Call(&ev)
	}
	return &File{Profile: *a.Profile(exe), Domain: domain, Saved: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func TestRoundTrip(t *testing.T) {
	for _, name := range []string{
		"/usr/sbin/nginx", "", "/../../etc/x", "/a b\x01\xff", ".hidden", "+plus", "/memfd:x", "%2F", "/" + strings.Repeat("\xff", bpf.PathLen-1),
	} {
		f := learnt(name, 0, 1, 257, 3, 0, 1, 900, 2000, bpf.X32Bit|520)
		f.Frozen, f.NormalAt = true, f.Saved.Add(time.Hour)
		text, err := Encode(f)
		must(t, err)
		got, err := Decode(bytes.NewReader(text))
		must(t, err)
		if !reflect.DeepEqual(got, f) {
			t.Errorf("%q: read\n%+v\nwrote\n%+v", name, got, f)
		}
		s := NewStore(t.TempDir())
		must(t, s.Save(f))
		all, err := s.Load(domain)
		must(t, err)
		if len(all) != 1 || !reflect.DeepEqual(all[0], f) {
			t.Errorf("%q: loaded %+v", name, all)
		}
		must(t, s.Delete(domain, name))
		must(t, s.Delete(domain, name))
		if all, err := s.Load(domain); err != nil || len(all) != 0 {
			t.Errorf("%q: after Delete %d profiles, %v", name, len(all), err)
		}
	}
}

// No flipped bit and no missing byte gets through, and what is damaged is kept.
func TestCorrupt(t *testing.T) {
	s := NewStore(t.TempDir())
	must(t, s.Save(learnt("/bin/sh", 0, 1)))
	must(t, s.Save(learnt("/bin/cat", 0, 1)))
	path := filepath.Join(s.dir, "profiles", domain, "%2Fbin%2Fsh.profile")
	good, err := os.ReadFile(path)
	must(t, err)

	for i := range good {
		for _, bad := range [][]byte{good[:i], append(append(bytes.Clone(good[:i]), good[i]^1), good[i+1:]...)} {
			if _, err := Decode(bytes.NewReader(bad)); err == nil {
				t.Fatalf("byte %d of %d: damage is not noticed", i, len(good))
			}
		}
	}
	for _, cut := range []int{0, 1, len(good) / 2, len(good) - 1} {
		must(t, os.WriteFile(path, good[:cut], 0o600))
		all, err := s.Load(domain)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "set aside") {
			t.Errorf("cut at %d: %v", cut, err)
		}
		if len(all) != 1 || all[0].Name != "/bin/cat" {
			t.Errorf("cut at %d: the others are %+v", cut, all)
		}
	}
	kept, err := filepath.Glob(path + aside + "*")
	must(t, err)
	if len(kept) != 4 {
		t.Errorf("%d damaged files kept, want 4", len(kept))
	}
	if _, err := s.Load(domain); err != nil {
		t.Errorf("damaged files are looked at again: %v", err)
	}
}

// Whenever the power goes, what is read afterwards is the old file or the new one.
func TestPowerLoss(t *testing.T) {
	s := NewStore(t.TempDir())
	old := learnt("/bin/sh", 0, 1)
	must(t, s.Save(old))
	path := filepath.Join(s.dir, "profiles", domain, "%2Fbin%2Fsh.profile")
	text, err := Encode(learnt("/bin/sh", 0, 1, 2, 3))
	must(t, err)
	for cut := range len(text) + 1 {
		must(t, os.WriteFile(path+partial, text[:cut], 0o600))
		all, err := s.Load(domain)
		must(t, err)
		if len(all) != 1 || !reflect.DeepEqual(all[0], old) {
			t.Fatalf("cut at %d: %+v", cut, all)
		}
		if _, err := os.Stat(path + partial); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("cut at %d: the part is still there: %v", cut, err)
		}
	}
}

func TestRefused(t *testing.T) {
	text, err := Encode(learnt("/bin/sh", 0, 1))
	must(t, err)
	other := bytes.Replace(text, []byte("frail-profile 2 "), []byte("frail-profile 3 "), 1)
	if _, err := Decode(bytes.NewReader(other)); err == nil || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "format") {
		t.Errorf("another version: %v", err)
	}
	if err := NewStore(t.TempDir()).Save(&File{Domain: "../x"}); err == nil {
		t.Error("a domain that is a path is taken")
	}
}

func FuzzDecode(f *testing.F) {
	text, err := Encode(learnt("/bin/sh", 0, 1, 257))
	must(f, err)
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, err := Decode(bytes.NewReader(text)); err == nil {
			if _, err := Encode(p); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestMergeAndDiff(t *testing.T) {
	a, b := learnt("/bin/sh", 0, 1, 2), learnt("/bin/sh", 0, 1, 3, 1)
	m := Merge(a, b)
	if d := Diff(&m.Profile, &m.Profile); len(d) != 0 {
		t.Errorf("a profile differs from itself: %+v", d)
	}
	for _, f := range []*File{a, b} {
		for _, d := range Diff(&m.Profile, &f.Profile) {
			if d.Second != 0 {
				t.Errorf("the merged profile lacks %v after %v at %v", d.Call, d.Prev, ph.Distances(d.Second))
			}
		}
	}
	if ab, ba := Diff(&a.Profile, &b.Profile), Diff(&b.Profile, &a.Profile); len(ab) == 0 || len(ab) != len(ba) || ab[0].First != ba[0].Second {
		t.Errorf("%+v and the other way round %+v", ab, ba)
	}
	if m.Train != 7 {
		t.Errorf("merged from %d calls, want 7", m.Train)
	}
}

func TestPlot(t *testing.T) {
	f := learnt("<sh & \x01>", 0, 1, 257, 0, 1)
	var out bytes.Buffer
	must(t, Plot(&out, &f.Profile))
	cells := 0
	dec := xml.NewDecoder(&out)
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if s, ok := tok.(xml.StartElement); ok && s.Name.Local == "title" {
			cells++
		}
	}
	want := 1 // the plot's own title
	for _, r := range f.Rows {
		want += len(r.Pairs)
	}
	if cells != want {
		t.Errorf("%d titles, want one for each of %d pairs and the plot", cells, want-1)
	}
}

func TestSeccomp(t *testing.T) {
	f := learnt("/bin/sh", 0, 1, 257)
	var out bytes.Buffer
	must(t, Seccomp(&out, &f.Profile))
	var doc struct {
		DefaultAction string
		Architectures []string
		Syscalls      []struct {
			Names  []string
			Action string
		}
	}
	must(t, json.Unmarshal(out.Bytes(), &doc))
	if doc.DefaultAction != "SCMP_ACT_ERRNO" || !reflect.DeepEqual(doc.Architectures, []string{"SCMP_ARCH_X86_64"}) ||
		len(doc.Syscalls) != 1 || !reflect.DeepEqual(doc.Syscalls[0].Names, []string{"openat", "read", "write"}) {
		t.Errorf("%s", out.String())
	}
}
