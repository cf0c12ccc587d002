// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"errors"
	"flag"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var module = flag.String("module", "/frail/lab/frail.ko", "frail.ko, which is loaded")

// load loads frail.ko.
func load(t *testing.T) {
	t.Helper()
	if err := unix.InitModule(readFile(t, *module), ""); err != nil {
		t.Fatalf("load frail.ko: %v", err)
	}
}

// unload unloads a module, which something may still hold for a moment.
func unload(t *testing.T, name string) {
	t.Helper()
	within(t, time.Minute, "unload "+name, func() error {
		err := unix.DeleteModule(name, unix.O_NONBLOCK)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatalf("unload %s: %v", name, err)
		}
		return err
	})
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
