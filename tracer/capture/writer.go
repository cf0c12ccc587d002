// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"

	"frail/bpf"
	"frail/tracer"
)

// Header describes a capture.
type Header struct {
	// Domain and UUID of the libvirt domain; may be empty.
	Domain string `json:"domain,omitempty"`
	UUID   string `json:"uuid,omitempty"`
	// Started is when the capture began.
	Started time.Time `json:"started"`
	// RealtimeOffset, added to an event's time, gives nanoseconds since the Unix epoch.
	RealtimeOffset int64 `json:"realtime_offset"`
	// Frail is the version that wrote the file.
	Frail string `json:"frail,omitempty"`
}

// Writer writes a capture. It is a [tracer.ProcessSink] whose Flush writes what was collected, so
// that a file that is cut off lacks little. It is not safe for concurrent use.
type Writer struct {
	w      io.Writer
	enc    encoder
	zip    *zstd.Encoder
	out    []byte
	offset uint64
	index  []blockAt
	closed bool
	err    error
}

type blockAt struct {
	offset      uint64
	events      uint32
	first, last uint64
}

var _ tracer.ProcessSink = (*Writer)(nil)

// NewWriter writes the header and returns a writer. The caller closes it.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	text, err := json.Marshal(&h)
	if err != nil {
		return nil, fmt.Errorf("write capture: %w", err)
	}
	if len(text) > maxHeader {
		return nil, fmt.Errorf("write capture: header of %d bytes: at most %d", len(text), maxHeader)
	}
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("write capture: %w", err)
	}
	head := append([]byte(fileMagic), 0, 0, 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(head[8:], Version)
	binary.LittleEndian.PutUint32(head[12:], uint32(len(text)))
	out := &Writer{w: w, zip: zip, enc: newEncoder()}
	return out, out.write(append(head, text...))
}

func (w *Writer) write(b []byte) error {
	if w.err != nil {
		return w.err
	}
	n, err := w.w.Write(b)
	w.offset += uint64(n)
	if err != nil {
		w.err = fmt.Errorf("write capture: %w", err)
	}
	return w.err
}

// Event adds an event.
func (w *Writer) Event(ev *bpf.Event) error {
	w.enc.event(ev)
	return w.full()
}

// Process takes who a thread is. It is written with the thread's next event.
func (w *Writer) Process(p *bpf.Process) error {
	w.enc.processes.Add(p)
	return nil
}

// Lost adds a loss.
func (w *Writer) Lost(l tracer.Lost) error {
	w.enc.lost(l)
	return w.full()
}

func (w *Writer) full() error {
	if w.enc.events < blockEvents && len(w.enc.buf) < blockBytes {
		return nil
	}
	return w.Sync()
}

// Flush does nothing: blocks are written when they are full, or by [Writer.Sync].
func (w *Writer) Flush() error { return nil }

// Sync writes what was added as a block, however short.
func (w *Writer) Sync() error {
	e := &w.enc
	if e.events == 0 || w.err != nil {
		return w.err
	}
	var head [headSize]byte
	w.out = w.zip.EncodeAll(e.buf, append(w.out[:0], head[:]...))
	h := blockHead{
		magic: blockMagic, size: uint32(len(w.out) - headSize), events: e.events, raw: uint32(len(e.buf)),
		first: e.first, last: e.latest,
	}
	h.put(w.out)
	h.crc = sum(w.out, w.out[headSize:])
	h.put(w.out)
	w.index = append(w.index, blockAt{w.offset, e.events, e.first, e.latest})
	e.reset()
	return w.write(w.out)
}

// Close writes the rest and the index. It does not close the underlying writer.
func (w *Writer) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	err := w.Sync()
	if err == nil {
		at := w.offset
		b := binary.LittleEndian.AppendUint32(nil, indexMagic)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(w.index)))
		for _, x := range w.index {
			b = binary.LittleEndian.AppendUint64(b, x.offset)
			b = binary.LittleEndian.AppendUint32(b, x.events)
			b = binary.LittleEndian.AppendUint64(b, x.first)
			b = binary.LittleEndian.AppendUint64(b, x.last)
		}
		b = binary.LittleEndian.AppendUint32(b, crcOf(b))
		b = binary.LittleEndian.AppendUint64(b, at)
		b = binary.LittleEndian.AppendUint32(b, indexMagic)
		err = w.write(b)
	}
	return errors.Join(err, w.zip.Close())
}
