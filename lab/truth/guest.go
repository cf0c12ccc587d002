// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// Cmdline makes a guest's kernel record from its start. The clock counts
// events, so that it orders those of all CPUs.
const Cmdline = "trace_event=raw_syscalls:sys_enter,raw_syscalls:sys_exit trace_clock=counter trace_buf_size=8M"

// Finish is the end of a guest's script: it marks the end of the record and
// leaves the record in /out. Nothing else may run in the guest by then.
const Finish = `
mkdir /out/truth
mount -t tracefs tracefs /sys/kernel/tracing && cd /sys/kernel/tracing || exit 1
exec t-mark /sys/kernel/tracing/tracing_on sh -c '
for event in sys_enter sys_exit; do cat events/raw_syscalls/$event/format >/out/truth/$event; done
for cpu in per_cpu/cpu*; do
	t-drain $cpu/trace_pipe_raw >/out/truth/${cpu#*/}.raw
	cat $cpu/stats >/out/truth/${cpu#*/}.stats
done'
`

// Dir is where Finish leaves the record, below /out.
const Dir = "truth"

// GuestEvent is a record of the guest's kernel.
type GuestEvent struct {
	Seq  uint64 // orders the events of all CPUs
	CPU  int
	Task int32
	Exit bool
	Nr   int64
	Args [6]uint64 // of a call
	Ret  int64     // of a return
}

// ReadGuest reads the files that Finish left and returns the events in order.
// A record that is not complete is an error.
func ReadGuest(files map[string][]byte) ([]GuestEvent, error) {
	var events []GuestEvent
	enter, err := parseFormat(files["sys_enter"])
	if err != nil {
		return nil, fmt.Errorf("read the guest's record: sys_enter: %w", err)
	}
	exit, err := parseFormat(files["sys_exit"])
	if err != nil {
		return nil, fmt.Errorf("read the guest's record: sys_exit: %w", err)
	}
	cpus := 0
	for name, data := range files {
		cpu, ok := strings.CutSuffix(name, ".raw")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(cpu, "cpu"))
		if err != nil {
			return nil, fmt.Errorf("read the guest's record: %s: %w", name, err)
		}
		cpus++
		before := len(events)
		err = readRing(data, func(seq uint64, entry []byte) error {
			ev, err := parseEntry(enter, exit, entry)
			ev.Seq, ev.CPU = seq, n
			events = append(events, ev)
			return err
		})
		if err == nil {
			err = checkStats(files[cpu+".stats"], len(events)-before)
		}
		if err != nil {
			return nil, fmt.Errorf("read the guest's record: %s: %w", name, err)
		}
	}
	if cpus == 0 {
		return nil, errors.New("read the guest's record: it has none")
	}
	sort.SliceStable(events, func(i, j int) bool { return events[i].Seq < events[j].Seq })
	return events, nil
}

// format is where an event's fields lie in its record.
type format struct {
	id     uint16
	size   int
	offset map[string]int
}

// Fields that events have, by how the kernel names them.
const (
	fieldType = "common_type"
	fieldPID  = "common_pid"
	fieldNr   = "id"
	fieldArgs = "args"
	fieldRet  = "ret"
)

var (
	formatID    = regexp.MustCompile(`(?m)^ID: (\d+)$`)
	formatField = regexp.MustCompile(`field:[^;]*?(\w+)(?:\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);`)
)

// parseFormat reads an event's format as tracefs has it.
func parseFormat(text []byte) (format, error) {
	f := format{offset: map[string]int{}}
	id := formatID.FindSubmatch(text)
	if id == nil {
		return f, errors.New("its format has no ID")
	}
	n, err := strconv.ParseUint(string(id[1]), 10, 16)
	if err != nil {
		return f, err
	}
	f.id = uint16(n)
	for _, m := range formatField.FindAllSubmatch(text, -1) {
		offset, err := strconv.Atoi(string(m[2]))
		if err != nil {
			return f, err
		}
		size, err := strconv.Atoi(string(m[3]))
		if err != nil {
			return f, err
		}
		f.offset[string(m[1])] = offset
		f.size = max(f.size, offset+size)
	}
	for _, name := range []string{fieldType, fieldPID, fieldNr} {
		if _, ok := f.offset[name]; !ok {
			return f, fmt.Errorf("its format has no field %s", name)
		}
	}
	return f, nil
}

func parseEntry(enter, exit format, entry []byte) (GuestEvent, error) {
	var ev GuestEvent
	if len(entry) < 2 {
		return ev, errors.New("a record without a type")
	}
	id := order.Uint16(entry)
	f := enter
	if id == exit.id {
		f, ev.Exit = exit, true
	} else if id != enter.id {
		return ev, fmt.Errorf("a record of unknown type %d", id)
	}
	if len(entry) < f.size {
		return ev, fmt.Errorf("a record of %d bytes, want %d", len(entry), f.size)
	}
	ev.Task = int32(order.Uint32(entry[f.offset[fieldPID]:]))
	ev.Nr = int64(order.Uint64(entry[f.offset[fieldNr]:]))
	if ev.Exit {
		ev.Ret = int64(order.Uint64(entry[f.offset[fieldRet]:]))
		return ev, nil
	}
	for i := range ev.Args {
		ev.Args[i] = order.Uint64(entry[f.offset[fieldArgs]+8*i:])
	}
	return ev, nil
}

// checkStats checks that a CPU's buffer lost nothing and held n events.
func checkStats(text []byte, n int) error {
	stats := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		stats[name] = value
	}
	for name, want := range map[string]int{
		"overrun": 0, "commit overrun": 0, "dropped events": 0, "read events": n,
	} {
		if stats[name] != strconv.Itoa(want) {
			return fmt.Errorf("the kernel's statistics say %q of %s, want %d", stats[name], name, want)
		}
	}
	return nil
}
