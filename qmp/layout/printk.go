// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

const (
	// maxLogBits and maxLogCountBits bound the ring's bytes and its descriptors, which
	// are read in pieces: 2 GiB are the most that log_buf_len= can ask for, and there is
	// a descriptor for each 32 bytes.
	maxLogBits      = 31
	maxLogCountBits = maxLogBits - 5

	// logBatch is how many descriptors are read at a time.
	logBatch = 1024

	// maxInfoSize and maxDescSize bound a record's description.
	maxInfoSize = 1024
	maxDescSize = 256
)

// LogRecord is a message of the guest kernel's log.
type LogRecord struct {
	// Seq counts the messages since the boot. Numbers that are missing were not
	// in the log any more.
	Seq uint64

	// Time is the kernel's clock at the message: about the time since the boot.
	Time time.Duration

	// Facility and Level are those of syslog(3): the kernel's own facility is 0,
	// and levels are from 0, an emergency, to 7, for debugging.
	Facility, Level int

	// Caller is the id of the thread that made it, or the number of the CPU if
	// InInterrupt.
	Caller      uint32
	InInterrupt bool

	// Text is the message, without a newline at its end. Lines in it are separated
	// by newlines, and anything else may be in it as well.
	Text string
}

// KernelLog yields the messages in the guest kernel's log, the oldest first, as far as
// they are complete. mem is the guest's physical memory. It needs the ring of Linux 5.10
// and later. After an error it ends.
//
// The guest logs meanwhile. A message that was overwritten before it was read is left
// out; its number is missing.
//
// Its algorithm is that of the kernel's own readers, Documentation/core-api/printk and
// kernel/printk/printk_ringbuffer.c: a descriptor's state tells whether what was read
// between two looks at it belonged to its message.
func (l *Layout) KernelLog(ctx context.Context, mem io.ReaderAt) iter.Seq2[LogRecord, error] {
	return func(yield func(LogRecord, error) bool) {
		symbol, ok := l.symbols.lookup("prb")
		if !ok {
			yield(LogRecord{}, errors.New("read kernel log: no symbol prb: the kernel is older than 5.10"))
			return
		}
		for rec, err := range l.readLog(ctx, mem, symbol.Addr) {
			if err != nil {
				err = fmt.Errorf("read kernel log: %w", err)
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}

// readLog is KernelLog where the pointer to the ring lies at prb.
func (l *Layout) readLog(ctx context.Context, mem io.ReaderAt, prb uint64) iter.Seq2[LogRecord, error] {
	return func(yield func(LogRecord, error) bool) {
		r, err := l.openLog(mem, prb)
		if err != nil {
			yield(LogRecord{}, err)
			return
		}
		for id := r.tail; id != r.head+1; {
			n := min(logBatch, r.head+1-id, r.count-id%r.count)
			records, err := r.read(id, int(n))
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(LogRecord{}, err)
				return
			}
			for _, rec := range records {
				if !yield(rec, nil) {
					return
				}
			}
			id += n
		}
	}
}

// logReader reads a ring of messages.
type logReader struct {
	l   *Layout
	mem io.ReaderAt
	sp  *space

	head, tail    uint64 // ids of the newest and the oldest descriptor
	count         uint64 // of descriptors, a power of two
	descs, infos  uint64
	descSize      uint64
	infoSize      uint64
	data, dataLen uint64
}

// Ids of descriptors and their states share a word.
const (
	stateShift     = 62
	idMask         = 1<<stateShift - 1
	stateFinalized = 2
)

func (l *Layout) openLog(mem io.ReaderAt, prb uint64) (*logReader, error) {
	r := &logReader{l: l, mem: mem, sp: newSpace(mem, l.PageTable, l.Levels)}
	f := &follower{l: l, sp: r.sp}
	var pointer [8]byte
	f.read(pointer[:], prb, "prb")
	ring := littleEndian(pointer[:])
	descRing := ring + uint64(f.member("printk_ringbuffer.desc_ring").Offset)
	textRing := ring + uint64(f.member("printk_ringbuffer.text_data_ring").Offset)
	countBits := f.number(descRing, "prb_desc_ring.count_bits")
	sizeBits := f.number(textRing, "prb_data_ring.size_bits")
	r.descs = f.pointer(descRing, "prb_desc_ring.descs")
	r.infos = f.pointer(descRing, "prb_desc_ring.infos")
	r.data = f.pointer(textRing, "prb_data_ring.data")
	r.descSize = uint64(f.member("prb_desc").Size)
	r.infoSize = uint64(f.member("printk_info").Size)
	for _, name := range []string{
		"prb_desc.state_var", "prb_desc.text_blk_lpos", "prb_data_blk_lpos.begin", "prb_data_blk_lpos.next",
		"printk_info.seq", "printk_info.ts_nsec", "printk_info.text_len", "printk_info.facility",
		"printk_info.flags", "printk_info.caller_id",
	} {
		f.member(name)
	}
	if f.err != nil {
		return nil, f.err
	}
	if countBits > maxLogCountBits || sizeBits > maxLogBits {
		return nil, fmt.Errorf("a ring of 2^%d messages and 2^%d bytes", countBits, sizeBits)
	}
	if r.descSize > maxDescSize || r.infoSize > maxInfoSize {
		return nil, fmt.Errorf("descriptors of %d and %d bytes", r.descSize, r.infoSize)
	}
	r.count, r.dataLen = 1<<countBits, 1<<sizeBits
	if err := r.locate(descRing); err != nil {
		return nil, err
	}
	return r, nil
}

// locateTries is how often the ring's ends are read while they move.
const locateTries = 5

// locate finds the ring's ends. The newest descriptor must bear the id that the ring says,
// or else the ring is not what it was taken for.
func (r *logReader) locate(descRing uint64) error {
	f := &follower{l: r.l, sp: r.sp}
	var newest uint64
	for range locateTries {
		r.head = f.number(descRing, "prb_desc_ring.head_id") & idMask
		r.tail = f.number(descRing, "prb_desc_ring.tail_id") & idMask
		newest = f.number(r.descs+r.head%r.count*r.descSize, "prb_desc.state_var") & idMask
		if f.err != nil {
			return f.err
		}
		if newest != r.head {
			continue
		}
		// The tail is at most a ring behind. It is known later than the head, and
		// may have moved since.
		if (r.head-r.tail)&idMask >= r.count {
			r.tail = (r.head - r.count + 1) & idMask
		}
		// Ids of 62 bits do not wrap in a lifetime, but begin shortly before that.
		if r.head < r.tail {
			r.head += 1 << stateShift
		}
		return nil
	}
	return fmt.Errorf("the newest message is %d, its descriptor that of message %d", r.head, newest)
}

// read returns the messages of the n descriptors from id on that are complete. They do
// not wrap around the ring's end.
func (r *logReader) read(id uint64, n int) ([]LogRecord, error) {
	index := id % r.count
	descs, err := r.readDescs(index, n)
	if err != nil {
		return nil, err
	}
	infos := make([]byte, uint64(n)*r.infoSize)
	if err := r.sp.read(infos, r.infos+index*r.infoSize); err != nil {
		return nil, fmt.Errorf("read descriptions: %w", err)
	}
	text := &space{mem: newSnapshot(r.mem), root: r.sp.root, levels: r.sp.levels, tables: r.sp.tables}
	records := make([]LogRecord, n)
	valid := make([]bool, n)
	for i := range n {
		desc, info := descs[uint64(i)*r.descSize:][:r.descSize], infos[uint64(i)*r.infoSize:][:r.infoSize]
		if !r.complete(desc, id+uint64(i)) {
			continue
		}
		if records[i], valid[i], err = r.record(text, desc, info, id+uint64(i)); err != nil {
			return nil, err
		}
	}
	// What was taken back before now may have been overwritten while it was read.
	again, err := r.readDescs(index, n)
	if err != nil {
		return nil, err
	}
	out := records[:0]
	for i := range n {
		if valid[i] && r.complete(again[uint64(i)*r.descSize:][:r.descSize], id+uint64(i)) {
			out = append(out, records[i])
		}
	}
	return out, nil
}

func (r *logReader) readDescs(index uint64, n int) ([]byte, error) {
	descs := make([]byte, uint64(n)*r.descSize)
	if err := r.sp.read(descs, r.descs+index*r.descSize); err != nil {
		return nil, fmt.Errorf("read descriptors: %w", err)
	}
	return descs, nil
}

func (r *logReader) in(b []byte, name string) uint64 {
	m := r.l.members[name]
	return littleEndian(b[m.Offset:][:min(m.Size, 8)])
}

// complete reports whether a descriptor is that of the message id and the message is
// final.
func (r *logReader) complete(desc []byte, id uint64) bool {
	state := r.in(desc, "prb_desc.state_var")
	return state&idMask == id&idMask && state>>stateShift == stateFinalized
}

// record reads the message of a descriptor. Not ok: its text is not there any more.
func (r *logReader) record(text *space, desc, info []byte, id uint64) (rec LogRecord, ok bool, err error) {
	const (
		inInterrupt = 1 << 31
		levelShift  = 5 // flags have the low bits of the byte
	)
	caller := r.in(info, "printk_info.caller_id")
	rec = LogRecord{
		Seq:         r.in(info, "printk_info.seq"),
		Time:        time.Duration(r.in(info, "printk_info.ts_nsec")),
		Facility:    int(r.in(info, "printk_info.facility")),
		Level:       int(r.in(info, "printk_info.flags") & 0xff >> levelShift),
		Caller:      uint32(caller &^ inInterrupt),
		InInterrupt: caller&inInterrupt != 0,
	}
	lpos := desc[r.l.members["prb_desc.text_blk_lpos"].Offset:]
	at, size, ok := r.block(r.in(lpos, "prb_data_blk_lpos.begin"), r.in(lpos, "prb_data_blk_lpos.next"))
	if !ok {
		return rec, false, nil
	}
	if size == 0 {
		return rec, true, nil
	}
	// A block begins with its descriptor's id.
	const idSize = 8
	size = min(size, idSize+r.in(info, "printk_info.text_len"))
	b := make([]byte, size)
	if err := text.read(b, r.data+at); err != nil {
		return rec, false, fmt.Errorf("read message %d: %w", rec.Seq, err)
	}
	rec.Text = string(b[idSize:])
	return rec, binary.LittleEndian.Uint64(b)&idMask == id&idMask, nil
}

// block returns where in the ring a block lies, by its logical positions, and its size with
// the id; 0 for a message without text. Not ok: there is no such block.
func (r *logReader) block(begin, next uint64) (at, size uint64, ok bool) {
	const (
		noBlock   = 1 // bit 0: positions that are none
		emptyLine = 3
		idSize    = 8
	)
	if begin&noBlock != 0 || next&noBlock != 0 {
		return 0, 0, begin == emptyLine && next == emptyLine
	}
	switch (next-1)/r.dataLen - begin/r.dataLen {
	case 0:
		at, size = begin%r.dataLen, next-begin
	case 1: // it did not fit before the end and begins at the start
		at, size = 0, next%r.dataLen
	}
	return at, size, begin%idSize == 0 && next%idSize == 0 && size > idSize && size <= r.dataLen
}
