// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"

	"github.com/klauspost/compress/zstd"

	"frail/bpf"
	"frail/tracer"
)

func crcOf(b []byte) uint32 { return crc32.Checksum(b, crcTable) }

// Reader reads a capture. It is not safe for concurrent use.
type Reader struct {
	// Header describes the capture.
	Header Header
	// Truncated is set when the file ended within a block: it was cut off there.
	Truncated bool
	// Described says that the capture tells who the threads are, as all do since version 3.
	Described bool

	r     io.ReadSeeker
	buf   *bufio.Reader
	start int64 // of the first block
	zip   *zstd.Decoder
	dec   decoder
	raw   []byte
	data  []byte
	skip  uint64 // events before this time are left out
	noRet bool   // of a file of versionNoRet
}

// NewReader reads the header. The caller closes the reader, which leaves r open.
func NewReader(r io.ReadSeeker) (*Reader, error) {
	out := &Reader{r: r, buf: bufio.NewReaderSize(r, 1<<20)}
	var head [16]byte
	if _, err := io.ReadFull(out.buf, head[:]); err != nil || string(head[:8]) != fileMagic {
		return nil, fmt.Errorf("read capture: %w: not a capture", ErrCorrupt)
	}
	v := binary.LittleEndian.Uint32(head[8:])
	if v < versionNoRet || v > Version {
		return nil, fmt.Errorf("read capture: format %d: this version reads up to %d", v, Version)
	}
	out.noRet = v == versionNoRet
	out.Described = v > versionNoProcess
	out.dec.noProcess = !out.Described
	n := binary.LittleEndian.Uint32(head[12:])
	if n > maxHeader {
		return nil, fmt.Errorf("read capture: %w: header of %d bytes", ErrCorrupt, n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(out.buf, text); err != nil {
		return nil, fmt.Errorf("read capture: %w: header: %w", ErrCorrupt, err)
	}
	if err := json.Unmarshal(text, &out.Header); err != nil {
		return nil, fmt.Errorf("read capture: %w: header: %w", ErrCorrupt, err)
	}
	out.start = int64(len(head)) + int64(n)
	var err error
	out.zip, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPayload))
	if err != nil {
		return nil, fmt.Errorf("read capture: %w", err)
	}
	return out, nil
}

// Close frees the reader.
func (r *Reader) Close() { r.zip.Close() }

// block reads the next block. io.EOF: there is none.
func (r *Reader) block() error {
	var head [headSize]byte
	n, err := io.ReadFull(r.buf, head[:4])
	if n == 0 && errors.Is(err, io.EOF) {
		r.Truncated = true // no index
		return io.EOF
	}
	if err == nil && binary.LittleEndian.Uint32(head[:]) == indexMagic {
		return io.EOF
	}
	if err == nil {
		_, err = io.ReadFull(r.buf, head[4:])
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		r.Truncated = true
		return io.EOF
	}
	if err != nil {
		return fmt.Errorf("read capture: %w", err)
	}
	var h blockHead
	h.get(head[:])
	if h.magic != blockMagic || h.size > maxPayload || h.raw > maxPayload {
		return fmt.Errorf("read capture: %w: bad block", ErrCorrupt)
	}
	if cap(r.raw) < int(h.size) {
		r.raw = make([]byte, h.size)
	}
	r.raw = r.raw[:h.size]
	if _, err := io.ReadFull(r.buf, r.raw); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			r.Truncated = true
			return io.EOF
		}
		return fmt.Errorf("read capture: %w", err)
	}
	if sum(head[:], r.raw) != h.crc {
		return fmt.Errorf("read capture: %w: bad checksum", ErrCorrupt)
	}
	if r.data, err = r.zip.DecodeAll(r.raw, r.data[:0]); err != nil || len(r.data) != int(h.raw) {
		return fmt.Errorf("read capture: %w: block does not decompress", ErrCorrupt)
	}
	r.dec.reset()
	r.dec.buf, r.dec.left, r.dec.bad = r.data, h.events, false
	return nil
}

// Run gives every record to sink; who a thread is, to a [tracer.ProcessSink], more than once: a
// capture can be read from any block on. It returns the sink's error as it is. A file that was cut
// off is no error: see Truncated.
func (r *Reader) Run(sink tracer.Sink) error {
	var ev bpf.Event
	var lost tracer.Lost
	var process bpf.Process
	describe := func(*bpf.Process) error { return nil }
	if sink, ok := sink.(tracer.ProcessSink); ok {
		describe = sink.Process
	}
	for {
		if r.dec.left == 0 {
			if err := sink.Flush(); err != nil {
				return err
			}
			err := r.block()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			continue
		}
		kind, err := r.dec.next(&ev, &lost, &process)
		if err != nil {
			return fmt.Errorf("read capture: %w", err)
		}
		if r.noRet && kind == recEvent && ev.Kind == bpf.EventExit {
			ev.Flags |= bpf.EventRet
		}
		switch {
		case kind == recProcess:
			err = describe(&process)
		case kind == recLost && lost.Time >= r.skip:
			err = sink.Lost(lost)
		case kind == recEvent && ev.Time >= r.skip:
			err = sink.Event(&ev)
		}
		if err != nil {
			return err
		}
	}
}

// Seek makes Run begin with the first record at or after a time. Times of a capture with
// several CPUs are in order but for microseconds.
func (r *Reader) Seek(time uint64) error {
	r.skip = time
	r.dec.left = 0
	blocks, err := r.blocks()
	if err != nil {
		return err
	}
	at := r.start
	if i := sort.Search(len(blocks), func(i int) bool { return blocks[i].last >= time }); i < len(blocks) {
		at = int64(blocks[i].offset)
	} else if n := len(blocks); n > 0 {
		at = int64(blocks[n-1].offset)
	}
	if _, err := r.r.Seek(at, io.SeekStart); err != nil {
		return fmt.Errorf("seek in capture: %w", err)
	}
	r.buf.Reset(r.r)
	return nil
}

// blocks returns where the blocks are: from the index or, where that is missing, from the
// blocks themselves.
func (r *Reader) blocks() ([]blockAt, error) {
	end, err := r.r.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("seek in capture: %w", err)
	}
	if out, ok := r.readIndex(end); ok {
		return out, nil
	}
	var out []blockAt
	for at := r.start; at+headSize <= end && len(out) < maxBlocks; {
		var b [headSize]byte
		if _, err := r.r.Seek(at, io.SeekStart); err != nil {
			return nil, fmt.Errorf("seek in capture: %w", err)
		}
		if _, err := io.ReadFull(r.r, b[:]); err != nil {
			return nil, fmt.Errorf("seek in capture: %w", err)
		}
		var h blockHead
		h.get(b[:])
		if h.magic != blockMagic {
			break
		}
		out = append(out, blockAt{uint64(at), h.events, h.first, h.last})
		at += headSize + int64(h.size)
	}
	return out, nil
}

func (r *Reader) readIndex(end int64) ([]blockAt, bool) {
	const tail, entry = 16, 28
	var b [12]byte
	if end < r.start+tail {
		return nil, false
	}
	if _, err := r.r.Seek(end-12, io.SeekStart); err != nil {
		return nil, false
	}
	if _, err := io.ReadFull(r.r, b[:]); err != nil || binary.LittleEndian.Uint32(b[8:]) != indexMagic {
		return nil, false
	}
	at := binary.LittleEndian.Uint64(b[:])
	size := end - 12 - int64(at)
	if int64(at) < r.start || size < 12 || size > 12+entry*maxBlocks {
		return nil, false
	}
	text := make([]byte, size)
	if _, err := r.r.Seek(int64(at), io.SeekStart); err != nil {
		return nil, false
	}
	if _, err := io.ReadFull(r.r, text); err != nil {
		return nil, false
	}
	body := text[:size-4]
	n := binary.LittleEndian.Uint32(body[4:])
	if crcOf(body) != binary.LittleEndian.Uint32(text[size-4:]) || uint64(len(body)) != 8+entry*uint64(n) {
		return nil, false
	}
	out := make([]blockAt, n)
	for i := range out {
		e := body[8+entry*i:]
		out[i] = blockAt{
			binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint32(e[8:]),
			binary.LittleEndian.Uint64(e[12:]), binary.LittleEndian.Uint64(e[20:]),
		}
	}
	return out, true
}
