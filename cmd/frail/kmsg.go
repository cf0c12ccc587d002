// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxKmsgRecord is more than the kernel makes a record of its log.
	maxKmsgRecord = 16 << 10
	// maxKmsgBytes bounds what is read of the log.
	maxKmsgBytes = 32 << 20
	// maxModuleLog is how many messages are shown: one load that fails makes no more.
	maxModuleLog = 3
)

// moduleLog returns the kernel's last warnings and errors about frail.ko, the oldest first.
// None may also mean that the log cannot be read.
func (s system) moduleLog() []string {
	var messages []string
	for line := range strings.Lines(string(s.kmsg())) {
		// PRIORITY,SEQUENCE,TIME,FLAGS;MESSAGE
		head, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ";")
		number, _, _ := strings.Cut(head, ",")
		priority, err := strconv.Atoi(number)
		text, ours := strings.CutPrefix(text, "frail: ")
		// A higher number is no warning, or not the kernel's. It warns of every module
		// that is not its own.
		if err == nil && ours && priority <= 4 && !strings.Contains(text, "taint") {
			messages = append(messages, text)
		}
	}
	return messages[max(0, len(messages)-maxModuleLog):]
}

// kmsg returns the records of the kernel's log, as far as it can be read.
func (s system) kmsg() []byte {
	fd, err := unix.Open(s.path("dev/kmsg"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var log bytes.Buffer
	record := make([]byte, maxKmsgRecord) // a read returns one
	for log.Len() < maxKmsgBytes {
		n, err := unix.Read(fd, record)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) { // overwritten meanwhile
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		log.Write(record[:n])
	}
	return log.Bytes()
}
