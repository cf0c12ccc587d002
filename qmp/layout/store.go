// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// DefaultStoreDir is where imported kernels are kept.
const DefaultStoreDir = "/var/lib/frail/layouts"

// ErrNotImported is returned for a build id that a Store has nothing of.
var ErrNotImported = errors.New("nothing was imported for this kernel")

const (
	storeMagic   = "frail-layout 1\n"
	storeSuffix  = ".layout"
	brokenSuffix = ".broken"

	// maxStoreHeader bounds a file's header, maxStoreFile what is read of a
	// file.
	maxStoreHeader = 4 << 10
	maxStoreFile   = 128 << 20
)

// Store keeps what operators gave of kernels that do not describe themselves, one
// file for each build id. A nil Store is empty. A Store is safe for concurrent use,
// by several processes too.
type Store struct {
	// Dir is the directory. It is made when it is first written to.
	Dir string
}

// storeHeader is the second line of a file, in JSON. What follows is compressed:
// the addresses of the symbols, 8 bytes each, their names as kallsyms has them, and
// BTF.
type storeHeader struct {
	BuildID string `json:"build_id"`
	// Symbols is their number, 0 if there are none.
	Symbols int `json:"symbols"`
	// Names and BTF are sizes in bytes.
	Names int `json:"names"`
	BTF   int `json:"btf"`
	// SHA256 is of what follows, before compression.
	SHA256 string `json:"sha256"`
}

// imported is what a Store has of a kernel, at the addresses that it was linked
// for.
type imported struct {
	symbols *symbols  // nil: none
	types   *btfTypes // nil: none
	btf     []byte
	stamp   string // of the file
}

func (s *Store) path(buildID string) string { return filepath.Join(s.Dir, buildID+storeSuffix) }

// stamp tells one state of a kernel's file from another. It is empty if there is
// none.
func (s *Store) stamp(buildID string) string {
	if s == nil || !isHex(buildID) {
		return ""
	}
	info, err := os.Stat(s.path(buildID))
	if err != nil {
		return ""
	}
	return fmt.Sprint(info.ModTime().UnixNano(), info.Size())
}

// load returns what was imported for a build id. A file that cannot be is set
// aside, and the error says so.
func (s *Store) load(buildID string) (*imported, error) {
	if s == nil || !isHex(buildID) {
		return nil, ErrNotImported
	}
	path := s.path(buildID)
	stamp := s.stamp(buildID)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotImported
	}
	if err != nil {
		return nil, fmt.Errorf("read imported layout: %w", err)
	}
	defer f.Close()
	imp, err := readStoreFile(f, buildID)
	if errors.Is(err, errOtherVersion) {
		return nil, fmt.Errorf("read imported layout %s: %w", path, err)
	}
	if err != nil {
		err = fmt.Errorf("read %s: %w: %w", path, errCorrupt, err)
		if aside := os.Rename(path, path+brokenSuffix); aside != nil {
			return nil, errors.Join(err, aside)
		}
		return nil, fmt.Errorf("%w (set aside as %s)", err, path+brokenSuffix)
	}
	imp.stamp = stamp
	return imp, nil
}

var errCorrupt = errors.New("imported layout is corrupt, import it again")

var errOtherVersion = errors.New("it was written by another version of Frail; import it again")

// readStoreFile parses a file and all that is in it.
func readStoreFile(r io.Reader, buildID string) (*imported, error) {
	br := bufio.NewReaderSize(io.LimitReader(r, maxStoreFile), maxStoreHeader)
	magic, err := br.ReadSlice('\n')
	if err != nil {
		return nil, errors.New("no first line")
	}
	if kind, _, _ := strings.Cut(storeMagic, " "); string(magic) != storeMagic && bytes.HasPrefix(magic, []byte(kind+" ")) {
		return nil, errOtherVersion
	} else if string(magic) != storeMagic {
		return nil, fmt.Errorf("its first line is %.40q", magic)
	}
	line, err := br.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("no header within %d bytes", maxStoreHeader)
	}
	var h storeHeader
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if h.BuildID != buildID {
		return nil, fmt.Errorf("it is of build id %.80q", h.BuildID)
	}
	if h.Symbols < 0 || h.Symbols > maxSymbols || h.Names < 0 || h.Names > maxNames || h.BTF < 0 || h.BTF > maxBTF {
		return nil, fmt.Errorf("%d symbols, %d bytes of names, %d bytes of BTF", h.Symbols, h.Names, h.BTF)
	}
	zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxStoreFile))
	if err != nil {
		return nil, err
	}
	defer zr.Close()
	body := make([]byte, 8*h.Symbols+h.Names+h.BTF)
	if _, err := io.ReadFull(zr, body); err != nil {
		return nil, fmt.Errorf("content: %w", err)
	}
	if digest := sha256.Sum256(body); hex.EncodeToString(digest[:]) != h.SHA256 {
		return nil, errors.New("its digest is another")
	}
	addrs, names, types := body[:8*h.Symbols], body[8*h.Symbols:8*h.Symbols+h.Names], body[8*h.Symbols+h.Names:]
	imp := new(imported)
	if h.Symbols > 0 {
		table, err := parseNames(context.Background(), names, h.Symbols, byteTokens())
		if err != nil {
			return nil, err
		}
		imp.symbols = &symbols{symbolTable: table, encoding: encodingAbsolute, addrs: make([]uint64, h.Symbols)}
		for i := range imp.symbols.addrs {
			imp.symbols.addrs[i] = binary.LittleEndian.Uint64(addrs[8*i:])
		}
	}
	if h.BTF > 0 {
		imp.btf = types
		if imp.types, err = parseBTF(types); err != nil {
			return nil, fmt.Errorf("BTF: %w", err)
		}
	}
	return imp, nil
}

// save writes what was imported for a build id: all of it or nothing.
func (s *Store) save(buildID string, imp *imported) (err error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return err
	}
	var body []byte
	h := storeHeader{BuildID: buildID, BTF: len(imp.btf)}
	if imp.symbols != nil {
		h.Symbols, h.Names = imp.symbols.len(), len(imp.symbols.names)
		for _, a := range imp.symbols.addrs {
			body = binary.LittleEndian.AppendUint64(body, a)
		}
		body = append(body, imp.symbols.names...)
	}
	body = append(body, imp.btf...)
	digest := sha256.Sum256(body)
	h.SHA256 = hex.EncodeToString(digest[:])
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.Dir, "."+buildID+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		return err
	}
	if _, err := f.Write(zw.EncodeAll(body, []byte(storeMagic+string(line)+"\n"))); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.path(buildID)); err != nil {
		return err
	}
	d, err := os.Open(s.Dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
