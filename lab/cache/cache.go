// SPDX-License-Identifier: Apache-2.0

// Package cache keeps what the lab builds (host and guest images) in one
// directory outside the repository, each under a key made from its inputs, so
// that it is built again only when an input changes.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// keyLen is the number of hexadecimal digits of a key that name a build.
const keyLen = 16

// lockPoll is how often a waiter looks whether another build has ended.
const lockPoll = 250 * time.Millisecond

// Dir returns the cache's directory: $FRAIL_CACHE, or "frail" in the user's
// cache directory. It need not exist.
func Dir() (string, error) {
	if dir := os.Getenv("FRAIL_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory (set FRAIL_CACHE): %w", err)
	}
	return filepath.Join(dir, "frail"), nil
}

// Key collects the inputs of a build. The zero value is not usable; call
// NewKey. Not safe for concurrent use.
type Key struct{ h hash.Hash }

// NewKey returns a Key with no inputs.
func NewKey() *Key { return &Key{sha256.New()} }

// Add adds a named input to the key.
func (k *Key) Add(name string, value []byte) {
	fmt.Fprintf(k.h, "%d:%s=%d:", len(name), name, len(value))
	k.h.Write(value)
}

// AddFS adds the name and content of every file of fsys.
func (k *Key) AddFS(fsys fs.FS) error {
	return fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(fsys, path)
		if err != nil {
			return err
		}
		k.Add(path, data)
		return nil
	})
}

// String returns the key of the inputs added so far.
func (k *Key) String() string {
	return hex.EncodeToString(k.h.Sum(nil))[:keyLen]
}

// Build returns the directory that holds the build called name with the given
// key, and makes it with fill first if it does not exist. fill writes into an
// empty directory beside the final one, which takes its place by a rename: an
// interrupted build is never taken for a finished one. The symbolic link
// DIR/name points to the newest build; builds with other keys are removed.
//
// Processes that build the same name wait for each other, until ctx ends.
func Build(ctx context.Context, name, key string, fill func(ctx context.Context, dir string) error) (string, error) {
	dir, err := Dir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create the cache: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, name+".lock"))
	if err != nil {
		return "", fmt.Errorf("lock the cache of %s: %w", name, err)
	}
	defer unlock()

	final := filepath.Join(dir, name+"-"+key)
	if _, err := os.Stat(final); err == nil {
		return final, link(dir, name, key)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look into the cache: %w", err)
	}

	// Under the lock, whatever has this name is left from an interrupted build.
	partial := filepath.Join(dir, "partial-"+name)
	if err := remove(partial); err != nil {
		return "", fmt.Errorf("remove an interrupted build: %w", err)
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return "", fmt.Errorf("create the build directory: %w", err)
	}
	if err := fill(ctx, partial); err != nil {
		return "", errors.Join(fmt.Errorf("build %s: %w", name, err), remove(partial))
	}
	if err := os.Rename(partial, final); err != nil {
		return "", fmt.Errorf("finish the build of %s: %w", name, err)
	}
	if err := link(dir, name, key); err != nil {
		return "", err
	}
	return final, removeOthers(dir, name, key)
}

func link(dir, name, key string) error {
	tmp := filepath.Join(dir, "link-"+name)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace the link to %s: %w", name, err)
	}
	if err := os.Symlink(name+"-"+key, tmp); err != nil {
		return fmt.Errorf("replace the link to %s: %w", name, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("replace the link to %s: %w", name, err)
	}
	return nil
}

func removeOthers(dir, name, key string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the cache: %w", err)
	}
	for _, e := range entries {
		other, ok := strings.CutPrefix(e.Name(), name+"-")
		if !ok || other == key || len(other) != keyLen {
			continue
		}
		if _, err := hex.DecodeString(other); err != nil {
			continue
		}
		if err := remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove an old build: %w", err)
		}
	}
	return nil
}

// remove deletes a tree, unless something is mounted in it: a root that a
// killed process left /proc mounted in must not take the machine's with it.
func remove(path string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[1], path+"/") {
			continue
		}
		if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", fields[1], err)
		}
	}
	return os.RemoveAll(path)
}

func lock(ctx context.Context, path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}
