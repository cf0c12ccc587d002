// SPDX-License-Identifier: Apache-2.0

package sequence

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"

	"frail/bpf"
)

const recordSize = int(unsafe.Sizeof(bpf.PhRecord{}))

// read waits for the next record.
func (a *Analyzer) read() (*bpf.PhRecord, error) {
	rec := new(bpf.PhRecord)
	raw := ringbuf.Record{RawSample: unsafe.Slice((*byte)(unsafe.Pointer(rec)), recordSize)}
	return rec, a.readInto(&raw)
}

func (a *Analyzer) readInto(raw *ringbuf.Record) error {
	if err := a.reader.ReadInto(raw); err != nil {
		return fmt.Errorf("read ring buffer: %w", err)
	}
	if len(raw.RawSample) != recordSize {
		return fmt.Errorf("read ring buffer: record of unknown size %d", len(raw.RawSample))
	}
	return nil
}

// Run calls f for each call that matters until ctx ends, which gives nil after all that was
// told before, the analyser is closed, which gives an error wrapping [os.ErrClosed], or f
// fails, which gives its error. The record is valid until f returns. Only one Run may run
// at a time.
func (a *Analyzer) Run(ctx context.Context, f func(*bpf.PhRecord) error) error {
	// Not SetDeadline: it waits for the read that it should end. An error means that the
	// reader is closed, which ends the read too.
	stop := context.AfterFunc(ctx, func() { _ = a.reader.Flush() })
	defer stop()
	rec := new(bpf.PhRecord)
	raw := ringbuf.Record{RawSample: unsafe.Slice((*byte)(unsafe.Pointer(rec)), recordSize)}
	for {
		err := a.readInto(&raw)
		switch {
		case err == nil:
			err = f(rec)
		case errors.Is(err, ringbuf.ErrFlushed):
			return nil
		}
		if err != nil {
			return err
		}
	}
}
