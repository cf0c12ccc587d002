// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// mark begins a line that the small host's init itself writes to its second
// port, see image/small/init.
const mark = 1

var (
	errNoStatus = errors.New("the host ended without an exit status")
	errAgain    = errors.New("the host started again")
)

// readPort reads what the small host's init writes until its last line: it
// calls began, copies the command's output to out as it comes and then the
// kernel's log to dmesg, and returns the command's exit status.
func readPort(port io.Reader, began func(), out, dmesg io.Writer) (int, error) {
	in := bufio.NewReader(port)
	dst := bufio.NewWriter(io.Discard)
	status := -1
	for begun := false; ; {
		b, err := in.ReadByte()
		if err != nil {
			return 0, errNoStatus
		}
		if b != mark {
			dst.WriteByte(b)
			if in.Buffered() == 0 {
				dst.Flush() // a failed write is reported by the flush that ends the part
			}
			continue
		}
		line, err := in.ReadString('\n')
		if err != nil {
			return 0, errNoStatus
		}
		if err := dst.Flush(); err != nil {
			return 0, fmt.Errorf("copy the host's output: %w", err)
		}
		verb, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "begin":
			if begun {
				return 0, errAgain
			}
			begun = true
			began()
			dst.Reset(out)
		case "end":
			if status, err = strconv.Atoi(value); err != nil {
				return 0, fmt.Errorf("read the exit status: %w", err)
			}
			dst.Reset(dmesg)
		case "done":
			return status, nil
		default:
			dst.WriteByte(mark)
			dst.WriteString(line)
		}
	}
}

// panicEnd is the last line of a kernel that panicked.
var panicEnd = []byte("---[ end Kernel panic")

// watchConsole copies a kernel's console to log until it ends, which is false,
// or the kernel has panicked, which is true.
func watchConsole(console io.Reader, log io.Writer) bool {
	in := bufio.NewReader(console)
	for {
		line, err := in.ReadSlice('\n')
		log.Write(line) // a log that cannot be written is no reason to fail the run
		if bytes.Contains(line, panicEnd) {
			return true
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return false
		}
	}
}
