// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestJournalLines(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "8:1")
	var out bytes.Buffer
	log := newLogger(&out, slog.LevelInfo).With("domain", "guest1")
	log.Debug("hidden")
	log.Info("one")
	log.Warn("two", "err", "a b")
	log.WithGroup("g").Error("three", "level", "kept")
	want := "<6>msg=one domain=guest1\n<4>msg=two domain=guest1 err=\"a b\"\n<3>msg=three domain=guest1 g.level=kept\n"
	if out.String() != want {
		t.Errorf("journal gets\n%s, want\n%s", out.String(), want)
	}
}

func TestTerminalLines(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	var out bytes.Buffer
	newLogger(&out, slog.LevelDebug).Debug("one")
	if got := out.String(); !strings.HasPrefix(got, "time=") || !strings.HasSuffix(got, " level=DEBUG msg=one\n") {
		t.Errorf("line is %q", got)
	}
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1"); err == nil {
		t.Error("no error when nobody listens")
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var buf [64]byte
	n, err := l.Read(buf[:])
	if err != nil {
		t.Fatal(err)
	}
	if string(buf[:n]) != "READY=1" {
		t.Errorf("service manager gets %q", buf[:n])
	}
}
