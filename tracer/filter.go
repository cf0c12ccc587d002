// SPDX-License-Identifier: Apache-2.0

package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/qmp/container"
	"frail/tracer/syscalls"
)

const (
	// MaxComms is how many thread names one filter can hold.
	MaxComms = bpf.MaxComms
	// MaxUIDs is how many user ids one filter can hold.
	MaxUIDs = bpf.MaxUIDs
	// MaxReturns is how many ranges of return values one filter can hold.
	MaxReturns = bpf.MaxReturns
	// MaxPaths is how many executables, or containers, one filter can hold.
	MaxPaths = 1024
)

// Set is a set of values to see or to leave out. The zero value sees all.
type Set[T any] struct {
	Values []T
	// Except turns Values into what does not pass.
	Except bool
}

// match says how the programs are to decide by s.
func (s *Set[T]) match() uint32 {
	switch {
	case len(s.Values) == 0:
		return bpf.MatchAll
	case s.Except:
		return bpf.MatchExcept
	default:
		return bpf.MatchOnly
	}
}

// Range is the return values from First to Last.
type Range struct{ First, Last int64 }

// Filter says which events of the followed VMs pass. It is applied in the kernel. The
// zero value lets all pass; an event must pass every part.
//
// What cannot be judged, because what a part looks at is not known of the event, does not
// pass and is counted: [Summary.Unjudged].
type Filter struct {
	// Kinds that pass. Zero: all.
	Kinds Kinds
	// Syscalls that pass. An exit may be of an unknown system call.
	Syscalls syscalls.Filter
	// Comms are names of guest threads, at most [MaxComms]. An event without identity
	// has no name, nor any of the following.
	Comms Set[string]
	// Processes and Threads are ids in the guest's initial pid namespace.
	Processes, Threads Set[int32]
	// UIDs are real user ids in the guest's initial user namespace, at most [MaxUIDs].
	UIDs Set[uint32]
	// Executables are paths as [bpf.Process] has them, or begin those of all in a
	// directory, if they end in a slash. At most [MaxPaths].
	Executables Set[string]
	// Containers are those of the containers, as [container.Prefixes] takes them, that a
	// process is in, the outer ones too. At most [MaxPaths].
	Containers Set[string]
	// Follow lets pass, of a process that passes, the children that it makes from then
	// on, and theirs, whatever Comms and the parts that follow it say.
	Follow bool

	// Errors are those of calls that pass; 0 stands for all calls without. A call and its
	// return pass as one then: the call comes right before its return, with the time when
	// it was made. A call does not pass whose return is not told, and that is counted.
	Errors Set[unix.Errno]
	// Returns are the values that calls return, at most [MaxReturns], likewise.
	Returns Set[Range]

	// Unknown lets pass what cannot be judged.
	Unknown bool
}

// Describes reports whether f needs descriptions of threads.
func (f *Filter) Describes() bool {
	return f.Follow || f.UIDs.match() != bpf.MatchAll || f.Executables.match() != bpf.MatchAll ||
		f.Containers.match() != bpf.MatchAll
}

// byReturn reports whether calls are judged by what they return.
func (f *Filter) byReturn() bool {
	return f.Errors.match() != bpf.MatchAll || f.Returns.match() != bpf.MatchAll
}

// Validate returns an error if no tracer can have the filter.
func (f *Filter) Validate() error {
	if _, err := f.compile(); err != nil {
		return err
	}
	for _, ids := range []struct {
		of     string
		values []int32
	}{{"process", f.Processes.Values}, {"thread", f.Threads.Values}} {
		for _, id := range ids.values {
			if id <= 0 || id >= bpf.PIDs {
				return fmt.Errorf("%s %d: ids go from 1 to %d", ids.of, id, bpf.PIDs-1)
			}
		}
	}
	for _, path := range f.Executables.Values {
		if _, err := exePrefix(path); err != nil {
			return err
		}
	}
	for _, name := range f.Containers.Values {
		if _, err := groupPrefixes(name); err != nil {
			return err
		}
	}
	return nil
}

// compile turns f into what the programs read, but for what is in maps, which it does not
// check.
func (f *Filter) compile() (bpf.Filter, error) {
	out := bpf.Filter{
		Kinds:          uint32(f.Kinds),
		SyscallMatch:   f.Syscalls.Match,
		Syscalls:       f.Syscalls.Numbers,
		CommMatch:      f.Comms.match(),
		CommCount:      uint32(len(f.Comms.Values)),
		ProcessMatch:   f.Processes.match(),
		ThreadMatch:    f.Threads.match(),
		UidMatch:       f.UIDs.match(),
		UidCount:       uint32(len(f.UIDs.Values)),
		ExeMatch:       f.Executables.match(),
		ContainerMatch: f.Containers.match(),
		ReturnMatch:    f.Returns.match(),
		ReturnCount:    uint32(len(f.Returns.Values)),
		Follow:         word(f.Follow),
		Unknown:        word(f.Unknown),
	}
	if f.Kinds == 0 {
		out.Kinds = uint32(allKinds)
	}
	switch {
	case f.Kinds&^allKinds != 0:
		return out, fmt.Errorf("unknown event kinds %#x", uint32(f.Kinds))
	case f.byReturn() && Kinds(out.Kinds)&Exit == 0:
		return out, errors.New("filter by what calls return: returns do not pass")
	}
	for _, m := range f.Syscalls.Match {
		if m > bpf.MatchExcept {
			return out, fmt.Errorf("unknown system call match %d", m)
		}
	}
	if err := errors.Join(
		atMost(MaxComms, f.Comms.Values, "thread names"), atMost(MaxUIDs, f.UIDs.Values, "user ids"),
		atMost(MaxReturns, f.Returns.Values, "ranges of return values"),
		atMost(MaxPaths, f.Executables.Values, "executables"), atMost(MaxPaths, f.Containers.Values, "containers"),
	); err != nil {
		return out, err
	}
	copy(out.Uids[:], f.UIDs.Values)
	for i, r := range f.Returns.Values {
		if r.First > r.Last {
			return out, fmt.Errorf("return values from %d to %d: there are none", r.First, r.Last)
		}
		out.Returns[i].First, out.Returns[i].Last = r.First, r.Last
	}
	if err := f.compileErrors(&out); err != nil {
		return out, err
	}
	for i, comm := range f.Comms.Values {
		if err := checkComm(comm); err != nil {
			return out, err
		}
		var name [bpf.CommLen]byte
		copy(name[:], comm)
		for word := range out.Comms[i] {
			out.Comms[i][word] = binary.NativeEndian.Uint64(name[8*word:])
		}
	}
	return out, nil
}

func (f *Filter) compileErrors(out *bpf.Filter) error {
	if f.Errors.match() == bpf.MatchAll {
		return nil
	}
	out.ByError = 1
	for _, e := range f.Errors.Values {
		if int(e) >= bpf.Errors {
			return fmt.Errorf("error %d: system calls return those up to %d", int(e), bpf.Errors-1)
		}
		out.Errors[e/64] |= 1 << (e % 64)
	}
	if f.Errors.Except {
		for i := range out.Errors {
			out.Errors[i] = ^out.Errors[i]
		}
	}
	return nil
}

func word(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

func atMost[T any](limit int, values []T, what string) error {
	if len(values) > limit {
		return fmt.Errorf("%d %s to filter by: at most %d", len(values), what, limit)
	}
	return nil
}

// checkComm returns an error if no thread can have that name.
func checkComm(comm string) error {
	switch {
	case comm == "":
		return errors.New("empty thread name to filter by")
	case len(comm) >= bpf.CommLen:
		return fmt.Errorf("thread name %q: Linux keeps the first %d bytes of a name: filter by %q",
			comm, bpf.CommLen-1, comm[:bpf.CommLen-1])
	case strings.Contains(comm, "\x00"):
		return fmt.Errorf("thread name %q has a NUL byte", comm)
	}
	return nil
}

// resize gives the maps that f does not need no more room than they must have.
func (f *Filter) resize(spec *ebpf.CollectionSpec) {
	for name, needed := range map[string]bool{
		"processes": f.Processes.match() != bpf.MatchAll,
		"threads":   f.Threads.match() != bpf.MatchAll,
		"tasks":     f.Describes(),
		"family":    f.Follow,
		"held":      f.byReturn(),
	} {
		if !needed {
			spec.Maps[name].MaxEntries = 1
		}
	}
	spec.Maps["executables"].MaxEntries = uint32(max(1, len(f.Executables.Values)))
	spec.Maps["containers"].MaxEntries = uint32(max(1, len(f.Containers.Values)*container.MaxPrefixes))
}

// fill puts into the maps what f has of their values.
func (f *Filter) fill(objs *objects) error {
	if err := putIDs(objs.Processes, f.Processes.Values, "process"); err != nil {
		return err
	}
	if err := putIDs(objs.Threads, f.Threads.Values, "thread"); err != nil {
		return err
	}
	for _, path := range f.Executables.Values {
		key, err := exePrefix(path)
		if err != nil {
			return err
		}
		if err := objs.Executables.Put(&key, uint8(1)); err != nil {
			return fmt.Errorf("filter by executable %q: %w", path, err)
		}
	}
	for _, name := range f.Containers.Values {
		prefixes, err := groupPrefixes(name)
		if err != nil {
			return err
		}
		for _, key := range prefixes {
			if err := objs.Containers.Put(&key, uint8(1)); err != nil {
				return fmt.Errorf("filter by container %q: %w", name, err)
			}
		}
	}
	return nil
}

// putIDs puts ids of processes or threads into their bitmap.
func putIDs(ids *ebpf.Map, values []int32, what string) error {
	for _, id := range values {
		at := uint32(id / 64)
		var word uint64
		if err := ids.Lookup(at, &word); err != nil {
			return fmt.Errorf("filter by %s %d: %w", what, id, err)
		}
		if err := ids.Put(at, word|1<<(id%64)); err != nil {
			return fmt.Errorf("filter by %s %d: %w", what, id, err)
		}
	}
	return nil
}

// exePrefix is what the paths of executables begin with that are path, or in it.
func exePrefix(path string) (bpf.ExePrefix, error) {
	var key bpf.ExePrefix
	switch {
	case path == "":
		return key, errors.New("empty path of an executable to filter by")
	case strings.Contains(path, "\x00"):
		return key, fmt.Errorf("executable %q has a NUL byte", path)
	case len(path) >= len(key.Path):
		return key, fmt.Errorf("executable %q: of a path at most %d bytes are known", path, len(key.Path)-1)
	}
	n := copy(key.Path[:], path)
	if !strings.HasSuffix(path, "/") {
		n++ // its NUL
	}
	key.Bits = uint32(8 * n)
	return key, nil
}

// groupPrefixes is what names of control groups begin with that are of a container.
func groupPrefixes(name string) ([]bpf.GroupPrefix, error) {
	prefixes, err := container.Prefixes(name)
	if err != nil {
		return nil, err
	}
	keys := make([]bpf.GroupPrefix, len(prefixes))
	for i, prefix := range prefixes {
		keys[i].Bits = uint32(8 * len(prefix))
		if copy(keys[i].Name[:], prefix) < len(prefix) {
			return nil, fmt.Errorf("container %q: the name is too long", name)
		}
	}
	return keys, nil
}
