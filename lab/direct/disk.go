// SPDX-License-Identifier: Apache-2.0

package direct

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// The guest's disk is an archive without a file system around it: of the
// script and its files first, of what the script left later.
const (
	scriptName = "run"
	outputName = "output"
	statusName = "status"
)

// Result is what a guest left.
type Result struct {
	Output string            // what the script wrote, stdout and stderr together
	Status int               // its exit status
	Files  map[string][]byte // what it left in /out
}

// writeDisk writes the disk as the guest finds it and returns how many bytes of it
// are used.
func writeDisk(name string, cfg Config) (used int64, err error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	header := &tar.Header{Name: scriptName, Mode: 0o644, Size: int64(len(cfg.Script))}
	if err := w.WriteHeader(header); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(w, cfg.Script); err != nil {
		return 0, err
	}
	for dst, src := range cfg.Files {
		if err := addTree(w, dst, src); err != nil {
			return 0, err
		}
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	size := int64(cfg.DiskMiB) << 20
	used, err = f.Seek(0, io.SeekCurrent)
	if err != nil || used > size {
		return 0, errors.Join(err, fmt.Errorf("%d bytes do not fit in %d", used, size))
	}
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	return used, f.Close()
}

// addTree adds a file, or a directory and all below it, by the name dst.
func addTree(w *tar.Writer, dst, src string) error {
	return filepath.WalkDir(src, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(src, name)
		if err != nil {
			return err
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		header := &tar.Header{Name: path.Join(dst, filepath.ToSlash(rel)), Mode: int64(info.Mode().Perm()), Size: info.Size()}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}

// readDisk reads the disk as the guest left it.
func readDisk(name string) (*Result, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	res := &Result{Files: map[string][]byte{}}
	archive := tar.NewReader(f)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			return nil, err
		}
		res.Files[path.Clean(header.Name)] = data
	}
	status, ok := res.Files[statusName]
	if !ok {
		return nil, errors.New("it did not come to its script's end")
	}
	if res.Status, err = strconv.Atoi(strings.TrimSpace(string(status))); err != nil {
		return nil, fmt.Errorf("parse the script's exit status: %w", err)
	}
	res.Output = string(res.Files[outputName])
	delete(res.Files, statusName)
	delete(res.Files, outputName)
	return res, nil
}
