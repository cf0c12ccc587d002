// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"frail/qmp"
	"frail/qmp/layout"
	"frail/qmp/qmptest"
)

// compareSymbols holds every symbol's address, type, name and place in the order against
// the guest's. It returns how many there are.
func compareSymbols(t *testing.T, g *qmptest.Guest, l *layout.Layout) (int, error) {
	t.Helper()
	var lines []string
	for s := range l.Symbols() {
		lines = append(lines, fmt.Sprintf("%016x %c %s", s.Addr, s.Type, s.Name))
	}
	return len(lines), g.CompareSymbols(t, lines)
}

// thread is a thread as /proc has it.
type thread struct {
	tgid int32
	comm string
}

// threadLine is a line of /proc/TGID/task/PID/stat after its path.
var threadLine = regexp.MustCompile(`^/proc/(\d+)/task/(\d+)/stat:\d+ \((.*)\) [A-Za-z] `)

// ownThreads returns the guest's own view of its threads by thread id.
func ownThreads(t *testing.T, g *qmptest.Guest) (map[int32]thread, error) {
	t.Helper()
	threads := make(map[int32]thread)
	for line := range strings.Lines(g.Run(t, "grep -H '' /proc/[0-9]*/task/[0-9]*/stat 2>/dev/null; true")) {
		m := threadLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("parse the guest's thread %q", line)
		}
		tgid, err := strconv.ParseInt(m[1], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("parse the guest's thread %q: %w", line, err)
		}
		pid, err := strconv.ParseInt(m[2], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("parse the guest's thread %q: %w", line, err)
		}
		threads[int32(pid)] = thread{int32(tgid), ownName(m[3])}
	}
	return threads, nil
}

// commLen is how long a thread's name is in its task_struct.
const commLen = 15

// kernelWorker is what a kernel worker's task_struct calls it: /proc adds what it did
// last.
var kernelWorker = regexp.MustCompile(`^kworker/[^:]+:\w+`)

// ownName returns what a thread's task_struct calls it: /proc adds to the names of
// kernel threads.
func ownName(comm string) string {
	if m := kernelWorker.FindString(comm); m != "" {
		comm = m
	}
	return comm[:min(len(comm), commLen)]
}

// oddName is the name of a known thread, which a careless parser of /proc trips over.
const oddName = "a) R (b c"

// known starts processes that stay: one of that name, one of another user, one in a pid
// namespace and one whose file is deleted. The guest takes one line.
const known = `mkfifo /tmp/wait; sh -c 'printf "` + oddName + `" >/proc/$$/comm; read x </tmp/wait' &
mkdir -p /etc; echo 'user:x:1000:1000::/:/bin/sh' >/etc/passwd; echo 'user:x:1000:' >/etc/group;
su user -c 'exec sleep 1001' &
unshare --pid --fork sleep 1002 &
cp /bin/busybox /tmp/busybox; /tmp/busybox sleep 1003 &
until test "$(readlink /proc/$!/exe)" = /tmp/busybox; do :; done; rm /tmp/busybox`

func startKnown(t *testing.T, g *qmptest.Guest) {
	t.Helper()
	g.Run(t, strings.ReplaceAll(known, "\n", " "))
}

// compareTasks holds the guest's threads, as its memory has them, against what it says
// of them before and after. It returns how many there are.
func compareTasks(t *testing.T, g *qmptest.Guest, mem *qmp.Memory, l *layout.Layout) (int, error) {
	t.Helper()
	before, err := ownThreads(t, g)
	if err != nil {
		return 0, err
	}
	tasks, err := list(t.Context(), mem, l.Tasks)
	if err != nil {
		return 0, err
	}
	after, err := ownThreads(t, g)
	if err != nil {
		return 0, err
	}
	var errs []error
	found := make(map[int32]bool)
	for _, task := range tasks {
		found[task.PID] = true
		got := thread{task.TGID, task.Comm}
		a, inBefore := before[task.PID]
		b, inAfter := after[task.PID]
		if (!inBefore || a != got) && (!inAfter || b != got) {
			errs = append(errs, fmt.Errorf("thread %d is %+v; the guest says %+v before and %+v after", task.PID, got, a, b))
		}
	}
	for pid, th := range before {
		// The listing process itself is another one each time.
		if after[pid] == th && !found[pid] {
			errs = append(errs, fmt.Errorf("the guest's thread %d, %+v, was not found", pid, th))
		}
	}
	return len(tasks), errors.Join(errs...)
}

// listTries is how often a list is read that the guest changes meanwhile.
const listTries = 3

// list lists what is the guest's, which may change its lists meanwhile.
func list[T any](ctx context.Context, mem *qmp.Memory, read func(context.Context, io.ReaderAt) ([]T, error)) (all []T, err error) {
	for range listTries {
		if all, err = read(ctx, mem); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read the guest's list %d times: %w", listTries, err)
}
