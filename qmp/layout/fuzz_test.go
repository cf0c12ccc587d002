// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fuzzLimit is how long one small input may keep a parser busy, on a busy machine.
const fuzzLimit = 10 * time.Second

func inTime(t *testing.T) {
	started := time.Now()
	t.Cleanup(func() {
		if d := time.Since(started); d > fuzzLimit {
			t.Errorf("it took %v", d)
		}
	})
}

// An image of whatever the guest likes, searched for symbol tables.
func FuzzSearch(f *testing.F) {
	for name := range arrangements {
		f.Add(buildTables(imageStart+0x1000, manySymbols(name)[:600], name))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		inTime(t)
		const at = 0x1000
		sp, _ := newImage(append(make([]byte, at), content[:min(len(content), imageLen-at)]...))
		s, tables, err := searchImage(t.Context(), sp, putsAt("_stext", testStext))
		if err != nil {
			return
		}
		if got, ok := s.lookup("_stext"); !ok || got.Addr != testStext || tables.names == 0 {
			t.Errorf("accepted symbols that put _stext at %#x", got.Addr)
		}
		for symbol := range s.all() {
			if len(symbol.Name) >= maxSymbolName {
				t.Errorf("a name of %d bytes", len(symbol.Name))
			}
		}
		_, _, _, _ = place(sp.mem, s, imageBase)
	})
}

// Tasks of whatever the guest likes: each word is an index into the same memory.
func FuzzTasks(f *testing.F) {
	const tasks = 0x1000
	ring := make([]byte, 0x200)
	for i := 0; i < len(ring); i += 0x40 {
		next := imageStart + tasks + uint64((i+0x40)%len(ring))
		binary.LittleEndian.PutUint64(ring[i:], next)
		binary.LittleEndian.PutUint64(ring[i+16:], next)
		binary.LittleEndian.PutUint64(ring[i+24:], next+16)
	}
	f.Add(ring)
	f.Add(bytes.Repeat([]byte{0x00, 0x10, 0x00, 0x80, 0xff, 0xff, 0xff, 0xff}, 64))
	f.Fuzz(func(t *testing.T, content []byte) {
		inTime(t)
		sp, image := newImage(nil)
		copy(image[tasks:], content)
		l := &Layout{
			PageTable: pgd, Levels: 4, InitTask: imageStart + tasks, TaskPID: 8, TaskTGID: 12, TaskComm: 32,
			tasks: taskOffsets{tasks: 0, signal: 16, threadNode: 24, signalThreads: 0},
		}
		got, err := l.Tasks(t.Context(), sp.mem)
		if err == nil && len(got) > imageLen {
			t.Errorf("%d tasks", len(got))
		}
		for _, task := range got {
			if task.PID < 0 || task.PID > maxPID || len(task.Comm) > commLen {
				t.Errorf("task %+v", task)
			}
		}
	})
}

func FuzzISF(f *testing.F) {
	f.Add([]byte(smallISF))
	f.Add([]byte(strings.Replace(smallISF, `{"kind": "union", "name": "unnamed_1"}`, `{"kind": "struct", "name": "task_struct"}`, 1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		inTime(t)
		r, err := decompress(bytes.NewReader(text))
		if err != nil {
			return
		}
		imp, err := parseISF(t.Context(), r)
		if err != nil || imp.btf == nil {
			return
		}
		if _, err := parseBTF(imp.btf); err != nil {
			t.Errorf("made BTF that does not parse: %v", err)
		}
	})
}

func FuzzStore(f *testing.F) {
	id := strings.Repeat("0123456789", 4)
	dir := f.TempDir()
	path := filepath.Join(dir, "isf")
	if err := os.WriteFile(path, []byte(smallISF), 0o600); err != nil {
		f.Fatal(err)
	}
	s := &Store{Dir: dir}
	if _, err := s.ImportISF(f.Context(), path, id); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(s.path(id))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, file []byte) {
		inTime(t)
		imp, err := readStoreFile(bytes.NewReader(file), id)
		if err == nil && imp.symbols != nil {
			for range imp.symbols.all() {
			}
		}
	})
}

func FuzzBuildID(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x0001234567890123456789"))
	f.Fuzz(func(t *testing.T, notes []byte) {
		if id := parseBuildID(notes); id != "" && !isHex(id) {
			t.Errorf("build id %q", id)
		}
	})
}

// An ELF file of whatever its author likes.
func FuzzVmlinux(f *testing.F) {
	self, err := os.ReadFile("testdata/small.elf")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(self)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, file []byte) {
		inTime(t)
		path := filepath.Join(dir, "vmlinux")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		s := &Store{Dir: filepath.Join(dir, "layouts")}
		if got, err := s.ImportVmlinux(t.Context(), path, ""); err == nil && !isHex(got.BuildID) {
			t.Errorf("imported %+v", got)
		}
	})
}
