// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"frail/bpf"
	"frail/tracer"
	"frail/tracer/capture"
)

// hostFile is the host's record in a directory of records; all else in it is
// the guest's.
const hostFile = "host.capture"

// Files picks a guest's record out of what it left in /out.
func Files(out map[string][]byte) map[string][]byte {
	files := map[string][]byte{}
	for name, data := range out {
		if base, ok := strings.CutPrefix(name, Dir+"/"); ok {
			files[base] = data
		}
	}
	return files
}

// Save leaves both records in a new directory: what the guest left in /out and
// the host's events.
func Save(dir string, out map[string][]byte, host []bpf.Event) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("save the records: %w", err)
	}
	for name, data := range Files(out) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("save the records: %w", err)
		}
	}
	f, err := os.Create(filepath.Join(dir, hostFile))
	if err != nil {
		return fmt.Errorf("save the records: %w", err)
	}
	defer f.Close()
	w, err := capture.NewWriter(f, capture.Header{})
	if err != nil {
		return fmt.Errorf("save the records: %w", err)
	}
	for i := range host {
		if err := w.Event(&host[i]); err != nil {
			return errors.Join(fmt.Errorf("save the records: %w", err), w.Close())
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("save the records: %w", err)
	}
	return f.Close()
}

// Load reads what Save left.
func Load(dir string) ([]GuestEvent, []bpf.Event, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("load the records: %w", err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if e.Name() == hostFile {
			continue
		}
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			return nil, nil, fmt.Errorf("load the records: %w", err)
		}
	}
	guest, err := ReadGuest(files)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(filepath.Join(dir, hostFile))
	if err != nil {
		return nil, nil, fmt.Errorf("load the records: %w", err)
	}
	defer f.Close()
	r, err := capture.NewReader(f)
	if err != nil {
		return nil, nil, fmt.Errorf("load the records: %w", err)
	}
	defer r.Close()
	var host hostSink
	if err := r.Run(&host); err != nil {
		return nil, nil, fmt.Errorf("load the records: %w", err)
	}
	return guest, host, nil
}

// hostSink collects events.
type hostSink []bpf.Event

func (s *hostSink) Event(ev *bpf.Event) error {
	*s = append(*s, *ev)
	return nil
}

func (s *hostSink) Lost(l tracer.Lost) error {
	return fmt.Errorf("%d events lost: %+v", l.Total(), l.Losses)
}

func (s *hostSink) Flush() error { return nil }

// Drop returns the host's events without the nth call, counted from 1; all of
// them if there is none.
func Drop(host []bpf.Event, n int) []bpf.Event {
	for i := range host {
		if host[i].Kind != bpf.EventEnter {
			continue
		}
		if n--; n == 0 {
			return slices.Delete(slices.Clone(host), i, i+1)
		}
	}
	return host
}
