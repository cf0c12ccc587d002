// SPDX-License-Identifier: Apache-2.0

package layout

import "io"

// maxSnapshotPages bounds what a snapshot remembers: 8 MiB.
const maxSnapshotPages = 2048

// snapshot is memory that reads whole pages and remembers them: the structures of
// a process lie close to those of the next, and on the slow paths to memory each
// read costs milliseconds. It is for one short task and one goroutine, because what
// it remembers grows old.
type snapshot struct {
	mem   io.ReaderAt
	pages map[int64]*[pageSize]byte
}

func newSnapshot(mem io.ReaderAt) *snapshot {
	return &snapshot{mem: mem, pages: make(map[int64]*[pageSize]byte)}
}

// ReadAt implements io.ReaderAt.
func (s *snapshot) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		at := off + int64(n)
		page, err := s.page(at &^ (pageSize - 1))
		if err != nil {
			// Perhaps only a part of the page is RAM.
			m, err := s.mem.ReadAt(p[n:], at)
			return n + m, err
		}
		n += copy(p[n:], page[at%pageSize:])
	}
	return n, nil
}

func (s *snapshot) page(at int64) (*[pageSize]byte, error) {
	if page, ok := s.pages[at]; ok {
		return page, nil
	}
	page := new([pageSize]byte)
	if _, err := s.mem.ReadAt(page[:], at); err != nil {
		return nil, err
	}
	if len(s.pages) >= maxSnapshotPages {
		clear(s.pages)
	}
	s.pages[at] = page
	return page, nil
}
