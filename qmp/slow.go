// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

const (
	// peekChunk is the most that libvirt's protocol carries in one call.
	peekChunk = 4 << 20

	// saveChunk bounds the file that QEMU writes.
	saveChunk = 64 << 20
)

// peekReader reads through virDomainMemoryPeek.
type peekReader struct {
	dom Peeker
}

func openPeek(dom Peeker) (reader, error) {
	if dom == nil {
		return nil, errors.New("not a libvirt domain")
	}
	return peekReader{dom}, nil
}

func (r peekReader) readAt(p []byte, addr uint64) error {
	for len(p) > 0 {
		n := min(len(p), peekChunk)
		b, err := r.dom.Peek(addr, n)
		if err != nil {
			return fmt.Errorf("peek through libvirt: %w", err)
		}
		if len(b) != n {
			return fmt.Errorf("peek through libvirt: %d of %d bytes", len(b), n)
		}
		copy(p, b)
		p = p[n:]
		addr += uint64(n)
	}
	return nil
}

func (peekReader) close() error { return nil }

// saveReader has QEMU write memory to a file.
type saveReader struct {
	mon goqemu.Monitor

	mu   sync.Mutex // one read at a time uses the file
	file *os.File
}

// openSave creates the file. QEMU may run as another user, so all may write to
// it; nothing in it is trusted, and only this process's descriptor is read.
func openSave(mon goqemu.Monitor, dir string) (reader, error) {
	if dir == "" {
		return nil, errors.New("no directory given to exchange files with QEMU")
	}
	file, err := os.CreateTemp(dir, "frail-memory-*")
	if err != nil {
		return nil, fmt.Errorf("create exchange file: %w", err)
	}
	if err := file.Chmod(0o622); err != nil {
		return nil, errors.Join(fmt.Errorf("share exchange file: %w", err), file.Close(), os.Remove(file.Name()))
	}
	return &saveReader{mon: mon, file: file}, nil
}

func (r *saveReader) readAt(p []byte, addr uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), saveChunk)
		args := struct {
			Address uint64 `json:"val"`
			Size    int    `json:"size"`
			Name    string `json:"filename"`
		}{addr, n, r.file.Name()}
		ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
		err := execute(ctx, r.mon, "pmemsave", args, nil)
		cancel()
		if err != nil {
			return err
		}
		if _, err := r.file.ReadAt(p[:n], 0); err != nil {
			return fmt.Errorf("read what QEMU saved: %w", err)
		}
		p = p[n:]
		addr += uint64(n)
	}
	return nil
}

func (r *saveReader) close() error {
	return errors.Join(r.file.Close(), os.Remove(r.file.Name()))
}
