// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// DefaultDir is where fraild keeps profiles.
	DefaultDir = "/var/lib/frail"

	suffix  = ".profile"
	aside   = ".corrupt-"
	partial = ".partial"
)

// Store keeps files in a directory: DIR/UUID of the domain/NAME.profile. A file is
// replaced in one step: after a loss of power it is the old one or the new one. It is
// safe for one process.
type Store struct{ dir string }

// NewStore returns the store in a directory, which is made when something is saved.
func NewStore(dir string) *Store { return &Store{dir: dir} }

// maxFileName leaves room, of the 255 bytes of a file's name, for what stands behind it.
const maxFileName = 200

// fileName returns the name of an executable's file. The guest chose the executable's: a byte
// that is not plain is "%" and two digits; what gets too long is "%" and a hash, which cannot
// be of such a byte.
func fileName(executable string) string {
	var b strings.Builder
	for i, c := range []byte(executable) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if b.Len() > maxFileName {
		return fmt.Sprintf("%%x%x%s", sha256.Sum256([]byte(executable)), suffix)
	}
	return b.String() + suffix
}

// domainDir returns the directory of a domain's profiles.
func (s *Store) domainDir(domain string) (string, error) {
	if domain == "" || domain[0] == '.' || strings.ContainsAny(domain, "/\x00") {
		return "", fmt.Errorf("domain %q is no UUID", domain)
	}
	return filepath.Join(s.dir, "profiles", domain), nil
}

// Save writes f, replacing the profile of the same executable of the same domain.
func (s *Store) Save(f *File) error {
	dir, err := s.domainDir(f.Domain)
	if err != nil {
		return fmt.Errorf("save profile of %q: %w", f.Name, err)
	}
	text, err := Encode(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save profile of %q: %w", f.Name, err)
	}
	if err := WriteFile(filepath.Join(dir, fileName(f.Name)), text); err != nil {
		return fmt.Errorf("save profile of %q: %w", f.Name, err)
	}
	return nil
}

// WriteFile replaces the file at path in one step.
func WriteFile(path string, text []byte) error {
	tmp, err := os.OpenFile(path+partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(path+partial, path)
	}
	if err != nil {
		_ = os.Remove(path + partial) // the error that matters is above
		return err
	}
	// The rename lasts when the directory is on the disk.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Load returns all profiles of a domain. A file that is corrupt is set aside under another
// name, beside its place, and told of in the error; the profiles that could be read are
// returned all the same.
func (s *Store) Load(domain string) ([]*File, error) {
	dir, err := s.domainDir(domain)
	if err != nil {
		return nil, fmt.Errorf("load profiles: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load profiles: %w", err)
	}
	var out []*File
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case strings.HasSuffix(e.Name(), suffix+partial):
			// What was being written when the power went: the old one is in place.
			_ = os.Remove(path)
			continue
		case !strings.HasSuffix(e.Name(), suffix):
			continue
		}
		f, err := ReadFile(path)
		if err == nil && fileName(f.Name) != e.Name() {
			err = fmt.Errorf("%w: it is of %q", ErrCorrupt, f.Name)
		}
		if errors.Is(err, ErrCorrupt) {
			to := path + aside + time.Now().UTC().Format("20060102T150405.000000000Z")
			if rerr := os.Rename(path, to); rerr != nil {
				err = errors.Join(err, rerr)
			} else {
				err = fmt.Errorf("%w: set aside as %s", err, to)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("load profile %s: %w", path, err))
			continue
		}
		f.Domain = domain
		out = append(out, f)
	}
	return out, errors.Join(errs...)
}

// ReadFile reads a profile from a file of any name.
func ReadFile(path string) (*File, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return Decode(r)
}

// Delete removes a profile. One that is not there is no error.
func (s *Store) Delete(domain, executable string) error {
	dir, err := s.domainDir(domain)
	if err == nil {
		err = os.Remove(filepath.Join(dir, fileName(executable)))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete profile of %q: %w", executable, err)
	}
	return nil
}
