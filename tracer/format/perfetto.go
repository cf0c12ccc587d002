// SPDX-License-Identifier: Apache-2.0

package format

import (
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"frail/bpf"
	"frail/tracer"
	"frail/tracer/syscalls"
	"frail/tracer/syscalls/decode"
)

// Perfetto formats for ui.perfetto.dev: a track for each guest thread, with a slice for each
// call that has its arguments and its return value, and instants for losses and for what is
// not seen. A record is one or more packets of a perfetto.protos.Trace, so a trace that is
// cut off is one up to its last whole packet: that is why it is not trace-event JSON, whose
// text is invalid then.
//
// The zero value is ready. It is not safe for concurrent use.
type Perfetto struct {
	// Offset is added to an event's time to get the time of day: see [WallOffset].
	Offset time.Duration

	started bool
	threads map[thread]*perfettoThread
	// processes are the tracks of processes: Perfetto takes a second one of a pid for
	// another process.
	processes map[process]uint64
	uuids     uint64 // of tracks, given so far
	call      decode.Call
	decoder   decoder // only its pieces
}

var _ Formatter = (*Perfetto)(nil)

// process names a process.
type process struct {
	vm   uint32
	tgid int32
}

// perfettoThread is a thread's track.
type perfettoThread struct {
	uuid uint64
	comm [bpf.CommLen]byte
	// open is set while the thread is in a call.
	open bool
	call decode.Call
}

// Numbers of fields and values of Perfetto's messages: protos/perfetto/trace/trace.proto,
// trace_packet.proto, clock_snapshot.proto and track_event/*.proto of its sources.
const (
	tracePacket = 1

	packetClockSnapshot = 6
	packetTimestamp     = 8 // CLOCK_BOOTTIME unless something else is said
	packetSequence      = 10
	packetEvent         = 11
	packetTrack         = 60

	snapshotClock  = 1
	clockID        = 1
	clockTimestamp = 2
	clockRealtime  = 1
	clockBoottime  = 6

	trackUUID    = 1
	trackName    = 2
	trackProcess = 3
	trackThread  = 4

	processPid  = 1
	processName = 6

	threadPid  = 1
	threadTid  = 2
	threadName = 5

	eventAnnotation = 4
	eventType       = 9
	eventTrack      = 11
	eventName       = 23

	typeSliceBegin = 1
	typeSliceEnd   = 2
	typeInstant    = 3

	annotationString = 6
	annotationName   = 10

	// sequence is the id of the only writer.
	sequence = 1
	// statusTrack is the track of what is not of a thread.
	statusTrack = 1
)

// AppendEvent appends the begin or the end of a slice, or an instant.
func (f *Perfetto) AppendEvent(dst []byte, ev *bpf.Event) []byte {
	dst = f.start(dst, ev.Time)
	if ev.Kind == bpf.EventCoverage {
		_, blind := ev.Coverage()
		return f.instant(dst, ev.Time, string(appendCoverage(nil, blind)))
	}
	var t *perfettoThread
	dst, t = f.thread(dst, ev)
	name := string(appendCall(nil, ev))
	if ev.Kind == bpf.EventExit {
		var args []byte
		if ev.RetKnown() {
			f.call = callOf(ev)
			f.call.Args = t.call.Args
			args = appendAnnotation(args, "return", string(f.call.AppendReturn(nil, returned(ev))))
		}
		if left := f.decoder.appendLeft(nil, ev); len(left) > 0 {
			args = appendAnnotation(args, "left", string(left))
		}
		if ev.Deferred() {
			args = appendAnnotation(args, "deferred", "the time is that of the thread's next call")
		}
		kind := uint64(typeSliceEnd)
		if !t.open { // it was made before the trace began, or its begin was lost
			kind = typeInstant
		}
		t.open, t.call.Args = false, [6]uint64{}
		return appendTrackEvent(dst, ev.Time, kind, t.uuid, name, args)
	}
	if t.open { // its end was lost
		dst = appendTrackEvent(dst, ev.Time, typeSliceEnd, t.uuid, "", nil)
	}
	t.call = callOf(ev)
	t.call.Pieces = f.decoder.pieces
	args := appendAnnotation(nil, "arguments", string(t.call.AppendArgs(nil)))
	t.call.Pieces = nil
	switch syscalls.Name(t.call.Table, t.call.Nr) {
	case "exit", "exit_group": // they do not return
		delete(f.threads, threadOf(ev))
		return appendTrackEvent(dst, ev.Time, typeInstant, t.uuid, name, args)
	}
	t.open = true
	return appendTrackEvent(dst, ev.Time, typeSliceBegin, t.uuid, name, args)
}

// AppendData appends what AppendEvent does, with annotations of what arguments point to.
func (f *Perfetto) AppendData(dst []byte, d *bpf.Data) []byte {
	return f.decoder.with(d, dst, f.AppendEvent)
}

// AppendProcess appends the name of a process: its executable, if that is known.
func (f *Perfetto) AppendProcess(dst []byte, p *bpf.Process) []byte {
	dst = f.start(dst, p.Head.Time)
	if p.Known&bpf.ProcessExe == 0 {
		return dst
	}
	key := process{p.Head.Vm, p.Head.Tgid}
	uuid := f.processes[key]
	if uuid == 0 {
		if len(f.processes) == maxThreads {
			clear(f.processes)
		}
		f.uuids++
		uuid = f.uuids
		f.processes[key] = uuid
	}
	desc := appendVarint(nil, processPid, uint64(p.Head.Tgid))
	desc = appendString(desc, processName, string(appendName(nil, p.ExeBytes())))
	return appendTrack(dst, uuid, trackProcess, desc)
}

// AppendLost appends an instant.
func (f *Perfetto) AppendLost(dst []byte, l tracer.Lost) []byte {
	return f.instant(f.start(dst, l.Time), l.Time, string(appendLosses(nil, l.Losses)))
}

// AppendSummary appends nothing: every loss has its instant.
func (f *Perfetto) AppendSummary(dst []byte, _ tracer.Summary) []byte { return dst }

// start appends what a trace begins with.
func (f *Perfetto) start(dst []byte, boot uint64) []byte {
	if f.started {
		return dst
	}
	f.started = true
	f.threads, f.processes, f.uuids = make(map[thread]*perfettoThread), make(map[process]uint64), statusTrack
	var snapshot []byte
	for _, clock := range [...]struct{ id, at uint64 }{
		{clockBoottime, boot},
		{clockRealtime, uint64(wall(boot, f.Offset).UnixNano())},
	} {
		snapshot = appendMessage(snapshot, snapshotClock,
			appendVarint(appendVarint(nil, clockID, clock.id), clockTimestamp, clock.at))
	}
	dst = appendPacket(dst, boot, packetClockSnapshot, snapshot)
	return appendTrack(dst, statusTrack, trackName, []byte("frail"))
}

// thread returns the track of an event's thread, and appends its description if it is new
// or has another name now.
func (f *Perfetto) thread(dst []byte, ev *bpf.Event) ([]byte, *perfettoThread) {
	key := threadOf(ev)
	t := f.threads[key]
	if t != nil && t.comm == ev.Comm {
		return dst, t
	}
	if t == nil {
		if len(f.threads) == maxThreads {
			clear(f.threads)
		}
		f.uuids++
		t = &perfettoThread{uuid: f.uuids}
		f.threads[key] = t
	}
	t.comm = ev.Comm
	if !ev.Identified() {
		return appendTrack(dst, t.uuid, trackName, strconv.AppendUint([]byte("no identity, vCPU "), uint64(ev.Vcpu), 10)), t
	}
	desc := appendVarint(nil, threadPid, uint64(ev.Tgid))
	desc = appendVarint(desc, threadTid, uint64(ev.Pid))
	desc = appendString(desc, threadName, string(appendName(nil, ev.CommBytes())))
	return appendTrack(dst, t.uuid, trackThread, desc), t
}

func (f *Perfetto) instant(dst []byte, boot uint64, text string) []byte {
	return appendTrackEvent(dst, boot, typeInstant, statusTrack, text, nil)
}

// appendTrack appends the description of a track: its uuid and one more field.
func appendTrack(dst []byte, uuid uint64, field protowire.Number, what []byte) []byte {
	return appendPacket(dst, 0, packetTrack, appendMessage(appendVarint(nil, trackUUID, uuid), field, what))
}

// appendTrackEvent appends an event with annotations that are encoded already.
func appendTrackEvent(dst []byte, boot, kind, track uint64, name string, annotations []byte) []byte {
	event := appendVarint(annotations, eventType, kind)
	event = appendVarint(event, eventTrack, track)
	if name != "" {
		event = appendString(event, eventName, name)
	}
	return appendPacket(dst, boot, packetEvent, event)
}

// appendPacket appends a packet with one field. A time of zero is none.
func appendPacket(dst []byte, boot uint64, field protowire.Number, what []byte) []byte {
	var packet []byte
	if boot != 0 {
		packet = appendVarint(packet, packetTimestamp, boot)
	}
	packet = appendVarint(packet, packetSequence, sequence)
	return appendMessage(dst, tracePacket, appendMessage(packet, field, what))
}

func appendAnnotation(dst []byte, name, value string) []byte {
	return appendMessage(dst, eventAnnotation, appendString(appendString(nil, annotationName, name), annotationString, value))
}

func appendVarint(dst []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), v)
}

func appendString(dst []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(dst, field, protowire.BytesType), s)
}

func appendMessage(dst []byte, field protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, field, protowire.BytesType), m)
}
