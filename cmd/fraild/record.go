// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"frail/api"
	"frail/cmd/internal/config"
	"frail/hooks"
	"frail/tracer"
	"frail/tracer/capture"
	"frail/tracer/format"
	"frail/tracer/ph"
	"frail/tracer/profile"
	"frail/tracer/record"
)

// records keeps a flight record of each domain that asks for one. It loads the recorder when
// the first one does. Its methods are safe for concurrent use.
type records struct {
	cfg *config.Config
	log *slog.Logger

	// attach makes the recorder see calls: a test has no module to attach to.
	attach func(*record.Recorder) error

	mu       sync.Mutex
	recorder *record.Recorder // nil until needed
	closed   bool
	domains  map[string]*recorded // by UUID

	// files is held while they are written and counted.
	files sync.Mutex
}

// recorded is a domain with a record: of the VM that runs, or of the last one.
type recorded struct {
	uuid, name string
	vm         uint32
	seconds    uint32
	record     *record.Record

	// due is set while a file is to be written, and next is when one may be.
	due  bool
	next time.Time
	// hurry is closed when what is due is to be written at once; writes waits for it.
	hurry  chan struct{}
	writes sync.WaitGroup
}

func newRecords(cfg *config.Config, log *slog.Logger) *records {
	return &records{cfg: cfg, log: log, attach: (*record.Recorder).Attach, domains: make(map[string]*recorded)}
}

// seconds returns how much of a domain is recorded.
func (r *records) seconds(want hooks.Record) uint32 {
	if want.SecondsPlus1 != 0 {
		return want.SecondsPlus1 - 1
	}
	return uint32(r.cfg.Record.Seconds)
}

// follow records a VM as st asks, or drops the record if st asks for none. The record of an
// older VM of the domain goes. describe makes the module tell of each thread who it is.
func (r *records) follow(vm uint32, st hooks.State, describe func() error) error {
	seconds := r.seconds(st.Config.Record)
	r.mu.Lock()
	d := r.domains[st.UUID]
	if d != nil && d.vm == vm && seconds != 0 {
		d.name, d.seconds = st.Name, seconds
		r.mu.Unlock()
		return nil
	}
	delete(r.domains, st.UUID)
	r.mu.Unlock()
	r.drop(d)
	if seconds == 0 {
		return nil
	}
	return errors.Join(r.begin(vm, st, seconds), describe())
}

func (r *records) begin(vm uint32, st hooks.State, seconds uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("record domain: %w", os.ErrClosed)
	}
	if r.recorder == nil {
		rec, err := record.New(record.Options{Bytes: r.cfg.Record.MaxBytes})
		if err != nil {
			return err
		}
		if err := r.attach(rec); err != nil {
			return errors.Join(err, rec.Close())
		}
		r.recorder = rec
	}
	rec, err := r.recorder.Record(vm)
	if err != nil {
		return err
	}
	r.domains[st.UUID] = &recorded{
		uuid: st.UUID, name: st.Name, vm: vm, seconds: seconds, record: rec, hurry: make(chan struct{}),
	}
	r.log.Info("system calls are recorded", "domain", st.Name, "vm", vm, "seconds", seconds)
	return nil
}

// leave ends the recording of a VM. What is held stays until its domain starts again or is no
// more. A VM that is not recorded is no error.
func (r *records) leave(vm uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.domains {
		if d.vm != vm {
			continue
		}
		if err := d.record.Stop(); err != nil {
			r.log.Error("cannot end a record", "domain", d.name, "err", err)
		}
	}
}

// forget drops the record of a domain that is no more.
func (r *records) forget(uuid string) {
	r.mu.Lock()
	d := r.domains[uuid]
	delete(r.domains, uuid)
	r.mu.Unlock()
	r.drop(d)
}

// drop frees what nobody finds any more, nil too. What an alert asked for is written before.
func (r *records) drop(d *recorded) {
	if d == nil {
		return
	}
	close(d.hurry)
	d.writes.Wait()
	if err := d.record.Close(); err != nil {
		r.log.Error("cannot free a record", "domain", d.name, "err", err)
	}
}

// close drops all records and ends the recorder.
func (r *records) close() {
	r.mu.Lock()
	r.closed = true
	all, recorder := r.domains, r.recorder
	r.domains = nil
	r.mu.Unlock()
	for _, d := range all {
		r.drop(d)
	}
	if recorder == nil {
		return
	}
	if err := recorder.Close(); err != nil {
		r.log.Error("cannot end the flight recorder", "err", err)
	}
}

// alert writes a domain's record to a file, soon: of alerts that come faster than a record is
// long, the first and what follows it are in one file each. It does not wait.
func (r *records) alert(uuid string, kind ph.AlertKind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.domains[uuid]
	if d == nil || d.due || kind == ph.AlertLimit { // which is no deed of the guest
		return
	}
	d.due = true
	wait := time.Until(d.next)
	d.writes.Go(func() {
		select {
		case <-time.After(wait):
		case <-d.hurry:
		}
		r.mu.Lock()
		d.due, d.next = false, time.Now().Add(time.Duration(d.seconds)*time.Second)
		r.mu.Unlock()
		path, sum, err := r.write(d)
		if err != nil {
			r.log.Error("the record of an alert is not written", "domain", d.name, "err", err)
			return
		}
		r.log.Info("the record of an alert is written", "domain", d.name, "file", path, "events", sum.GetEvents())
	})
}

// dump returns the last seconds of a record as a capture; 0: as many as are asked for.
func (r *records) dump(d *recorded, seconds uint32) ([]byte, *api.RecordSummary, error) {
	offset, err := format.WallOffset()
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	name, asked := d.name, d.seconds
	r.mu.Unlock()
	if seconds == 0 {
		seconds = asked
	}
	info := d.record.Info()
	until := tracer.BootTime()
	if info.Ended != 0 {
		until = info.Ended
	}
	from := until - min(until, uint64(seconds)*uint64(time.Second))
	var out bytes.Buffer
	w, err := capture.NewWriter(&out, capture.Header{
		Domain: name, UUID: d.uuid, Started: time.Unix(0, int64(max(from, info.Began))).Add(offset).UTC(),
		RealtimeOffset: int64(offset), Frail: api.Version(),
	})
	if err != nil {
		return nil, nil, err
	}
	got, err := d.record.Read(from, w)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, nil, err
	}
	sum := &api.RecordSummary{Events: got.Events, Lost: lossCounts(got.Lost), Seconds: seconds}
	if got.Events > 0 {
		sum.SpanNs = until - min(until, got.First)
	}
	// Events that are not older than asked for were overwritten, as far as can be told.
	sum.Full = got.Forgotten > 0 && info.Oldest > from
	return out.Bytes(), sum, nil
}

// Names of files: DOMAIN-TIME.frail. libvirt allows no slash in a domain's name.
const (
	fileTime   = "20060102T150405.000Z"
	fileSuffix = ".frail"
)

// write writes a record to a file in the directory of the configuration, in one step, and
// removes the domain's oldest files if there are too many.
func (r *records) write(d *recorded) (string, *api.RecordSummary, error) {
	data, sum, err := r.dump(d, 0)
	if err != nil {
		return "", nil, err
	}
	r.files.Lock()
	defer r.files.Unlock()
	dir := r.cfg.Record.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	path := filepath.Join(dir, d.name+"-"+time.Now().UTC().Format(fileTime)+fileSuffix)
	if err := profile.WriteFile(path, data); err != nil {
		return "", nil, err
	}
	all, err := r.list(d.name)
	for ; err == nil && len(all) > r.cfg.Record.MaxFiles; all = all[1:] {
		if err = os.Remove(all[0].GetPath()); err == nil {
			r.log.Info("an old record is removed", "domain", d.name, "file", all[0].GetPath())
		}
	}
	if err != nil {
		r.log.Error("old records are not removed", "domain", d.name, "err", err)
	}
	return path, sum, nil
}

// list lists the files of a domain, or of all if it is empty, the oldest first.
func (r *records) list(domain string) ([]*api.RecordFile, error) {
	entries, err := os.ReadDir(r.cfg.Record.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	type file struct {
		at time.Time
		*api.RecordFile
	}
	var found []file
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), fileSuffix)
		n := len(name) - len(fileTime)
		if !ok || n < 2 || name[n-1] != '-' || domain != "" && name[:n-1] != domain {
			continue
		}
		at, err := time.Parse(fileTime, name[n:])
		if err != nil {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		found = append(found, file{at, &api.RecordFile{
			Path: filepath.Join(r.cfg.Record.Dir, e.Name()), Bytes: uint64(info.Size()),
		}})
	}
	slices.SortStableFunc(found, func(a, b file) int { return a.at.Compare(b.at) })
	all := make([]*api.RecordFile, len(found))
	for i := range found {
		all[i] = found[i].RecordFile
	}
	return all, nil
}

// Records implements api.FrailServer.
func (s *server) Records(_ context.Context, req *api.RecordsRequest) (*api.RecordsResponse, error) {
	r := s.manager.host.records
	uuid, name := "", ""
	if key := req.GetDomain(); key != "" {
		d, err := s.domain(key)
		if err != nil {
			return nil, err
		}
		snap, _ := d.snapshot()
		uuid, name = snap.UUID, snap.Name
	}
	files, err := r.list(name)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "list records: %v", err)
	}
	resp := &api.RecordsResponse{Files: files}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.domains {
		if uuid == "" || d.uuid == uuid {
			resp.Records = append(resp.Records, r.describe(d))
		}
	}
	slices.SortFunc(resp.Records, func(a, b *api.Record) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetUuid(), b.GetUuid()))
	})
	return resp, nil
}

// describe is called with mu held.
func (r *records) describe(d *recorded) *api.Record {
	info := d.record.Info()
	out := &api.Record{
		Uuid: d.uuid, Name: d.name, Seconds: d.seconds, Held: info.Held, Recorded: info.Recorded,
		Bytes: uint64(r.cfg.Record.MaxBytes + record.ThreadsBytes), Ended: info.Ended != 0,
	}
	if info.Oldest != 0 {
		until := info.Ended
		if until == 0 {
			until = tracer.BootTime()
		}
		out.HeldNs = until - min(until, info.Oldest)
	}
	return out
}

// dumpChunk is how much of a record one message has.
const dumpChunk = 256 << 10

// DumpRecord implements api.FrailServer.
func (s *server) DumpRecord(req *api.DumpRecordRequest, stream grpc.ServerStreamingServer[api.DumpRecordResponse]) error {
	dom, err := s.domain(req.GetDomain())
	if err != nil {
		return err
	}
	snap, _ := dom.snapshot()
	r := s.manager.host.records
	r.mu.Lock()
	d := r.domains[snap.UUID]
	if d == nil {
		r.mu.Unlock()
		return status.Errorf(codes.FailedPrecondition, "domain '%s' is not recorded: its metadata has no <frail:record seconds=\"...\"/>, and record.seconds of fraild's configuration is 0", snap.Name)
	}
	// It is not freed meanwhile.
	d.writes.Add(1)
	r.mu.Unlock()
	select {
	case s.reads <- struct{}{}:
	case <-stream.Context().Done():
		d.writes.Done()
		return status.FromContextError(stream.Context().Err()).Err()
	}
	// In memory first: a slow client would have what it is sent overwritten.
	data, sum, err := r.dump(d, req.GetSeconds())
	<-s.reads
	d.writes.Done()
	if err != nil {
		return status.Errorf(codes.Internal, "dump record of domain '%s': %v", snap.Name, err)
	}
	for chunk := range slices.Chunk(data, dumpChunk) {
		if err := stream.Send(&api.DumpRecordResponse{Part: &api.DumpRecordResponse_Data{Data: chunk}}); err != nil {
			return err
		}
	}
	return stream.Send(&api.DumpRecordResponse{Part: &api.DumpRecordResponse_Summary{Summary: sum}})
}
