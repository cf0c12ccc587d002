// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"bytes"
	"strings"

	"frail/bpf"
)

// Executable is what a profile is about: a program of a VM.
type Executable struct {
	VM uint32
	// KnownBy is [bpf.PhByPath], [bpf.PhByPathEnd] or [bpf.PhByComm].
	KnownBy uint32
	text    [len(bpf.PhExecutable{}.Name)]byte
}

// endPrefix stands before the end of a path that is too long to be known.
const endPrefix = "..."

// Name returns what the executable is called: its path, which begins with a slash; "..." and
// the end of a path that is too long; or "[" and "]" around the name that a thread had, where
// the guest's layout leads to no path. The guest chose it: it may hold any byte but NUL.
func (e Executable) Name() string {
	text, _, _ := bytes.Cut(e.text[:], []byte{0})
	switch e.KnownBy {
	case bpf.PhByComm:
		return "[" + string(text) + "]"
	case bpf.PhByPathEnd:
		return endPrefix + string(text)
	default:
		return string(text)
	}
}

// NewExecutable returns the executable of that name in a VM. A name that is none of
// [Executable.Name]'s is a thread's. What is too long is cut off.
func NewExecutable(vm uint32, name string) Executable {
	e := Executable{VM: vm, KnownBy: bpf.PhByComm}
	max := bpf.CommLen
	if rest, ok := strings.CutPrefix(name, endPrefix); ok {
		e.KnownBy, name, max = bpf.PhByPathEnd, rest, bpf.PathLen
	} else if strings.HasPrefix(name, "/") {
		e.KnownBy, max = bpf.PhByPath, bpf.PathLen
	} else if len(name) >= 2 && name[0] == '[' && name[len(name)-1] == ']' {
		name = name[1 : len(name)-1]
	}
	copy(e.text[:max], name)
	return e
}

// ExecutableOf returns what a described thread runs: the program at a path, as it was when
// the thread was described, or, where that is not known, that of the thread's name.
func ExecutableOf(p *bpf.Process) Executable {
	e := Executable{VM: p.Head.Vm}
	switch {
	case p.Known&bpf.ProcessExe == 0:
		e.KnownBy = bpf.PhByComm
		copy(e.text[:], p.Head.CommBytes())
		return e
	case p.Known&bpf.ProcessExeCut != 0:
		e.KnownBy = bpf.PhByPathEnd
	default:
		e.KnownBy = bpf.PhByPath
	}
	copy(e.text[:], p.ExeBytes())
	return e
}

// BPF returns e as the BPF programs keep it.
func (e Executable) BPF() bpf.PhExecutable {
	return bpf.PhExecutable{Vm: e.VM, KnownBy: e.KnownBy, Name: e.text}
}

// FromBPF is the opposite of [Executable.BPF].
func FromBPF(e *bpf.PhExecutable) Executable {
	return Executable{VM: e.Vm, KnownBy: e.KnownBy, text: e.Name}
}

// Namer describes the threads of events that come without descriptions, as those of data sets
// and of old captures do: a thread runs the program of its name. The zero value is ready. It
// is not safe for concurrent use.
type Namer struct {
	threads map[threadKey]bpf.Event
	who     uint64
}

// Describe gives ev a description's number and returns the description if it is a new one.
func (n *Namer) Describe(ev *bpf.Event) *bpf.Process {
	if !ev.Identified() {
		return nil
	}
	if n.threads == nil {
		n.threads = make(map[threadKey]bpf.Event)
	}
	key := threadKey{ev.Vm, ev.Pid}
	last, ok := n.threads[key]
	if ok && last.Task == ev.Task && space(last.Cr3) == space(ev.Cr3) && bytes.Equal(last.CommBytes(), ev.CommBytes()) {
		ev.Who = last.Who
		return nil
	}
	n.who++
	ev.Who = n.who
	n.threads[key] = *ev
	p := &bpf.Process{Head: *ev}
	p.Head.Kind = bpf.EventProcess
	return p
}
