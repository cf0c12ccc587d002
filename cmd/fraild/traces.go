// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"sync"

	"frail/tracer"
)

// traces counts what the "frail trace" of fraild's life delivered and lost, so that a sum
// never falls when one of them ends. The zero value is ready. Its methods are safe for
// concurrent use, and wait for none that ends.
type traces struct {
	mu      sync.Mutex
	last    uint64
	running map[uint64]*runningTrace // by number
	// ended has an entry for each domain that was traced and is still known, by UUID.
	ended map[string]tracer.Summary
	// programs are the sums of ended ones, by name.
	programs map[string]tracer.ProgramStats
}

// runningTrace is a "frail trace" of a domain.
type runningTrace struct {
	number uint64
	uuid   string
	tracer *tracer.Tracer
}

// begin counts a tracer of a domain until the function that it returns is called, after the
// tracer was closed.
func (t *traces) begin(uuid string, tr *tracer.Tracer) (end func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running == nil {
		t.running = make(map[uint64]*runningTrace)
		t.ended = make(map[string]tracer.Summary)
		t.programs = make(map[string]tracer.ProgramStats)
	}
	t.last++
	r := &runningTrace{number: t.last, uuid: uuid, tracer: tr}
	t.running[r.number] = r
	t.ended[uuid] = t.ended[uuid]
	return func() { t.end(r) }
}

func (t *traces) end(r *runningTrace) {
	// Neither fails after Close.
	sum, _ := r.tracer.Summary()
	programs, _ := r.tracer.Programs()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.running, r.number)
	if was, known := t.ended[r.uuid]; known {
		t.ended[r.uuid] = addSummary(was, sum)
	}
	addPrograms(t.programs, programs)
}

// forget drops the sums of a domain that is no more.
func (t *traces) forget(uuid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.ended, uuid)
}

// traceSums are what traces counted until one moment.
type traceSums struct {
	// running are the sums of each that runs, and its number; by UUID of the domain.
	running map[string]map[uint64]tracer.Summary
	// total are the sums of all, also those that ended, by UUID of the domain.
	total    map[string]tracer.Summary
	programs map[string]tracer.ProgramStats // by name
}

func (t *traces) sums() (traceSums, error) {
	t.mu.Lock()
	out := traceSums{
		running:  make(map[string]map[uint64]tracer.Summary),
		total:    maps.Clone(t.ended),
		programs: maps.Clone(t.programs),
	}
	all := make([]*runningTrace, 0, len(t.running))
	for _, r := range t.running {
		all = append(all, r)
	}
	t.mu.Unlock()

	// One that ends meanwhile is not among those that ended, and still has its sums.
	for _, r := range all {
		sum, err := r.tracer.Summary()
		if err != nil {
			return out, err
		}
		programs, err := r.tracer.Programs()
		if err != nil {
			return out, err
		}
		if out.running[r.uuid] == nil {
			out.running[r.uuid] = make(map[uint64]tracer.Summary)
		}
		out.running[r.uuid][r.number] = sum
		out.total[r.uuid] = addSummary(out.total[r.uuid], sum)
		addPrograms(out.programs, programs)
	}
	return out, nil
}

func addSummary(a, b tracer.Summary) tracer.Summary {
	a.Delivered += b.Delivered
	a.Lost = a.Lost.Plus(b.Lost)
	a.Unjudged += b.Unjudged
	return a
}

func addPrograms(to map[string]tracer.ProgramStats, programs []tracer.ProgramStats) {
	for _, p := range programs {
		sum := to[p.Name]
		to[p.Name] = tracer.ProgramStats{Name: p.Name, Runs: sum.Runs + p.Runs, RunTime: sum.RunTime + p.RunTime}
	}
}
