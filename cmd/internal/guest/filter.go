// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"frail/api"
	"frail/bpf"
	"frail/tracer"
	"frail/tracer/syscalls"
)

// maxList bounds the text of a list of values to filter by, in bytes.
const maxList = 64 << 10

// Filter reads the filters of a trace. A list is of values separated by commas, and of all
// but these after a leading "!"; an empty one is no filter.
func Filter(start *api.TraceStart) (tracer.Filter, error) {
	f := tracer.Filter{Follow: start.GetFollow(), Unknown: start.GetUnknown()}
	var err error
	if f.Syscalls, err = syscalls.ParseFilter(start.GetSyscalls()); err != nil {
		return tracer.Filter{}, err
	}
	err = errors.Join(
		parseSet(&f.Comms, "thread name", start.GetComm(), parseString),
		parseSet(&f.Processes, "process id", start.GetPid(), parseID),
		parseSet(&f.Threads, "thread id", start.GetTid(), parseID),
		parseSet(&f.UIDs, "user id", start.GetUid(), parseUID),
		parseSet(&f.Executables, "executable", start.GetExe(), parsePath),
		parseSet(&f.Containers, "container", start.GetContainer(), parseString),
		parseSet(&f.Errors, "error", start.GetError(), parseErrno),
		parseSet(&f.Returns, "return value", start.GetReturns(), parseRange),
	)
	if err == nil && start.GetFailed() {
		err = onlyFailed(&f.Errors)
	}
	if err == nil && f.Follow && !namesProcesses(&f) {
		err = errors.New("to follow processes, name some: by process, thread, user, executable, container or thread name")
	}
	if err == nil {
		err = f.Validate()
	}
	if err != nil {
		return tracer.Filter{}, err
	}
	return f, nil
}

// namesProcesses reports whether f says which processes pass, and not only which do not.
func namesProcesses(f *tracer.Filter) bool {
	return names(f.Comms) || names(f.Processes) || names(f.Threads) || names(f.UIDs) || names(f.Executables) || names(f.Containers)
}

func names[T any](s tracer.Set[T]) bool { return len(s.Values) > 0 && !s.Except }

// onlyFailed takes calls that do not fail from what passes.
func onlyFailed(s *tracer.Set[unix.Errno]) error {
	switch {
	case len(s.Values) == 0 || s.Except:
		*s = tracer.Set[unix.Errno]{Values: append(s.Values, 0), Except: true}
	case slices.Contains(s.Values, 0):
		return errors.New("error 0 is that of calls that do not fail")
	}
	return nil
}

// parseSet reads a list of values, each of which is a what.
func parseSet[T any](s *tracer.Set[T], what, list string, parse func(string) (T, error)) error {
	if len(list) > maxList {
		return fmt.Errorf("list of a %s each is longer than %d bytes", what, maxList)
	}
	list = strings.TrimSpace(list)
	if list == "" {
		return nil
	}
	list, s.Except = strings.CutPrefix(list, "!")
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		switch {
		case item == "":
			return fmt.Errorf("empty %s in the list %q", what, list)
		case item[0] == '!':
			return fmt.Errorf("%s %q: \"!\" may only start the list, and then holds for all of it", what, item)
		}
		value, err := parse(item)
		if err != nil {
			return fmt.Errorf("%s %q: %w", what, item, err)
		}
		s.Values = append(s.Values, value)
	}
	return nil
}

func parseString(s string) (string, error) { return s, nil }

func parseID(s string) (int32, error) {
	id, err := strconv.ParseInt(s, 10, 32)
	if err != nil || id <= 0 || id >= bpf.PIDs {
		return 0, fmt.Errorf("not a number from 1 to %d", bpf.PIDs-1)
	}
	return int32(id), nil
}

func parseUID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, errors.New("not a number: the guest's names are not known here")
	}
	return uint32(id), nil
}

func parsePath(s string) (string, error) {
	if s[0] != '/' {
		return "", errors.New("not a path from the root: a program of any directory is --filter-comm's")
	}
	return s, nil
}

// parseRange reads "1", "-1", "0x10", "1..5", "1.." and "..-1".
func parseRange(s string) (tracer.Range, error) {
	number := func(s string, missing int64) (int64, error) {
		if s == "" {
			return missing, nil
		}
		n, err := strconv.ParseInt(s, 0, 64)
		if err != nil {
			return 0, errors.New("neither a number nor a range of them, such as 1..9 and 1..")
		}
		return n, nil
	}
	first, last, isRange := strings.Cut(s, "..")
	if !isRange {
		last = first
	}
	from, err := number(first, math.MinInt64)
	if err != nil {
		return tracer.Range{}, err
	}
	to, err := number(last, math.MaxInt64)
	return tracer.Range{First: from, Last: to}, err
}

func parseErrno(s string) (unix.Errno, error) {
	if n, err := strconv.ParseUint(s, 10, 16); err == nil {
		if n >= uint64(bpf.Errors) {
			return 0, fmt.Errorf("numbers go from 0, no error, to %d", bpf.Errors-1)
		}
		return unix.Errno(n), nil
	}
	switch s { // the second names that Linux has for one
	case "EWOULDBLOCK":
		return unix.EWOULDBLOCK, nil
	case "EDEADLOCK":
		return unix.EDEADLOCK, nil
	case "ENOTSUP":
		return unix.ENOTSUP, nil
	}
	for e, name := range errnos() {
		if name == s {
			return e, nil
		}
	}
	near := syscalls.Nearest(strings.ToUpper(s), ErrorNames())
	if len(near) == 0 {
		return 0, errors.New("unknown")
	}
	return 0, fmt.Errorf("unknown: did you mean %s?", strings.Join(near, ", "))
}

// errnos are the errors that have names.
func errnos() iter.Seq2[unix.Errno, string] {
	return func(yield func(unix.Errno, string) bool) {
		for e := range unix.Errno(bpf.Errors) {
			if name := unix.ErrnoName(e); name != "" && !yield(e, name) {
				return
			}
		}
	}
}

// ErrorNames are the names of errors that a filter may have.
func ErrorNames() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, name := range errnos() {
			if !yield(name) {
				return
			}
		}
	}
}
