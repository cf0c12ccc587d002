// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

// writes returns a fill function that writes one file and counts its calls.
func writes(calls *int, content string) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		*calls++
		return os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o644)
	}
}

func key(inputs ...string) string {
	k := NewKey()
	for _, in := range inputs {
		k.Add("input", []byte(in))
	}
	return k.String()
}

func TestBuildOncePerKey(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("FRAIL_CACHE", dir)
	calls := 0
	for range 2 {
		got, err := Build(t.Context(), "thing", key("a"), writes(&calls, "a"))
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(got, "f")); err != nil || string(data) != "a" {
			t.Errorf("build holds %q, %v", data, err)
		}
	}
	if calls != 1 {
		t.Errorf("filled %d times, want once", calls)
	}

	// Another input: built anew, the old one is gone, the link follows.
	if _, err := Build(t.Context(), "thing", key("b"), writes(&calls, "b")); err != nil {
		t.Fatal(err)
	}
	if calls != 2 {
		t.Errorf("filled %d times after a change, want twice", calls)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "thing", "f")); err != nil || string(data) != "b" {
		t.Errorf("the link leads to %q, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "thing-"+key("a"))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old build is still there: %v", err)
	}
}

func TestInterruptedBuildIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("FRAIL_CACHE", dir)
	// What a killed process leaves.
	partial := filepath.Join(dir, "partial-thing")
	if err := os.MkdirAll(filepath.Join(partial, "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed")
	if _, err := Build(t.Context(), "thing", key("a"), func(context.Context, string) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a failed fill gives %v", err)
	}
	calls := 0
	got, err := Build(t.Context(), "thing", key("a"), writes(&calls, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if calls != 1 {
		t.Errorf("filled %d times, want once", calls)
	}
	if _, err := os.Stat(filepath.Join(got, "half")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the build has a part of the interrupted one: %v", err)
	}
}

func TestBuildWaitsForTheLock(t *testing.T) {
	t.Setenv("FRAIL_CACHE", t.TempDir())
	calls := 0
	_, err := Build(t.Context(), "thing", key("a"), func(ctx context.Context, dir string) error {
		// Another process asks while this one builds, and gives up.
		canceled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := Build(canceled, "thing", key("a"), writes(&calls, "a")); !errors.Is(err, context.Canceled) {
			t.Errorf("a second build gives %v, want that it waited", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls != 0 {
		t.Error("two builds ran at once")
	}
}

func TestKeyTellsInputsApart(t *testing.T) {
	seen := make(map[string]string)
	for name, k := range map[string]string{
		"none": key(), "one": key("ab"), "split": key("a", "b"), "joined": key("a", "b", ""),
	} {
		if other, ok := seen[k]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[k] = name
	}
	a, b := NewKey(), NewKey()
	if err := a.AddFS(fstest.MapFS{"x": {Data: []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	if err := b.AddFS(fstest.MapFS{"y": {Data: []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	if a.String() == b.String() {
		t.Error("a file's name is no part of the key")
	}
}
