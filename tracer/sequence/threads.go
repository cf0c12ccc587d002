// SPDX-License-Identifier: Apache-2.0

package sequence

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"frail/bpf"
)

// batchSize is how many elements of a map are read with one system call.
const batchSize = 1024

// Thread is what is known of a guest thread.
type Thread struct {
	VM        uint32
	PID, TGID int32
	// Task is the address of its task_struct.
	Task uint64
	// Comm is the name it had when it was described, up to the NUL. The guest chose it.
	Comm string
	// Calls is how many calls it made since its program began.
	Calls uint64
	// LFC is how many of its last 128 calls were anomalous, MaxLFC the most there were.
	LFC, MaxLFC uint8
	// Profile is the index of its profile.
	Profile uint32
}

// Threads returns all threads that are known, in no order.
func (a *Analyzer) Threads() ([]Thread, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Thread
	err := a.eachThread(func(k bpf.PhThreadKey, t *bpf.PhThread) {
		out = append(out, threadOf(k, t))
	})
	return out, err
}

// commOf returns a name of two words of memory, up to its NUL.
func commOf(words [2]uint64) string {
	var b []byte
	for _, w := range words {
		for range 8 {
			if byte(w) == 0 {
				return string(b)
			}
			b = append(b, byte(w))
			w >>= 8
		}
	}
	return string(b)
}

// eachThread is called with mu held.
func (a *Analyzer) eachThread(f func(bpf.PhThreadKey, *bpf.PhThread)) error {
	if a.closed {
		return fmt.Errorf("read threads: %w", os.ErrClosed)
	}
	keys := make([]bpf.PhThreadKey, batchSize)
	values := make([]bpf.PhThread, batchSize)
	return eachBatch(a.objs.Threads, keys, values, func(i int) { f(keys[i], &values[i]) })
}

// eachBatch reads a map into keys and values and calls f for each element of them.
func eachBatch[K, V any](m *ebpf.Map, keys []K, values []V, f func(i int)) error {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			f(i)
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("read map %s: %w", m, err)
		}
	}
}

// deleteThreads frees the threads that which selects. It is called with mu held.
func (a *Analyzer) deleteThreads(which func(bpf.PhThreadKey, *bpf.PhThread) bool) (int, error) {
	var keys []bpf.PhThreadKey
	if err := a.eachThread(func(k bpf.PhThreadKey, t *bpf.PhThread) {
		if which(k, t) {
			keys = append(keys, k)
		}
	}); err != nil {
		return 0, err
	}
	for _, k := range keys {
		if err := a.objs.Threads.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return 0, fmt.Errorf("free thread %d: %w", k.Pid, err)
		}
	}
	return len(keys), nil
}

// Idle returns the threads that made no call since the last but one Idle: candidates for
// [Analyzer.Free].
func (a *Analyzer) Idle() ([]Thread, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fmt.Errorf("read threads: %w", os.ErrClosed)
	}
	a.age++
	if err := a.objs.Age.Set(a.age); err != nil {
		return nil, fmt.Errorf("read threads: %w", err)
	}
	var out []Thread
	err := a.eachThread(func(k bpf.PhThreadKey, t *bpf.PhThread) {
		if a.age-t.Age >= 2 {
			out = append(out, threadOf(k, t))
		}
	})
	return out, err
}

// Free frees threads that are no more: those that were killed, and those that another
// thread of their process ended. One that made a call since [Analyzer.Idle] returned it is
// not freed. It returns how many were.
//
// One that lives is not analysed any more, until it is described anew.
func (a *Analyzer) Free(threads []Thread) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return 0, fmt.Errorf("free threads: %w", os.ErrClosed)
	}
	n := 0
	for i := range threads {
		t := &threads[i]
		key := bpf.PhThreadKey{Vm: t.VM, Pid: t.PID}
		var now bpf.PhThread
		err := a.objs.Threads.Lookup(key, &now)
		if err == nil {
			if now.Task != t.Task || now.Calls != t.Calls {
				continue
			}
			err = a.objs.Threads.Delete(key)
		}
		switch {
		case err == nil:
			n++
		case !errors.Is(err, ebpf.ErrKeyNotExist):
			return n, fmt.Errorf("free thread %d: %w", t.PID, err)
		}
	}
	return n, nil
}

func threadOf(k bpf.PhThreadKey, t *bpf.PhThread) Thread {
	return Thread{
		VM: k.Vm, PID: k.Pid, TGID: t.Tgid, Task: t.Task, Comm: commOf(t.Comm),
		Calls: t.Calls, LFC: t.Lfc, MaxLFC: t.MaxLfc, Profile: t.Profile,
	}
}
