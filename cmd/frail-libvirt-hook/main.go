// SPDX-License-Identifier: Apache-2.0

// Command frail-libvirt-hook is what libvirt's qemu hook for Frail runs
// (packaging/qemu-hook, in libvirt's hooks/qemu.d directory). It hands every
// call over to fraild and exits.
//
// It exits with status 0 whatever happens, within one second: a failing hook
// stops a domain from starting, and on libvirtd's reconnect kills a running one.
// For the same reason it never calls libvirt, which waits for it.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/syslog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"frail/hooks/handover"
)

const (
	// socketPath is where fraild listens. libvirt passes hooks no environment
	// and no options, so it is not configurable.
	socketPath = "/run/frail/hook.sock"

	// namespaceURI is hooks.NamespaceURI. That package needs cgo and libvirt,
	// which a hook does without.
	namespaceURI = "urn:frail:domain:1.0"

	// timeLimit bounds the whole run, reading and logging included.
	timeLimit = time.Second

	// sendLimit bounds the wait for room in fraild's socket.
	sendLimit = 200 * time.Millisecond

	// maxXML bounds what is read from standard input. A larger document does
	// not fit into a message anyway.
	maxXML = 1 << 20
)

func main() {
	defer os.Exit(0)
	time.AfterFunc(timeLimit, func() { os.Exit(0) })
	defer func() {
		if r := recover(); r != nil {
			report(fmt.Errorf("panic: %v", r))
		}
	}()
	if err := run(os.Args[1:], os.Stdin, socketPath); err != nil {
		report(err)
	}
}

// run hands one call over, made with args and the domain's XML on stdin.
func run(args []string, stdin io.Reader, socket string) error {
	if len(args) != 4 {
		return fmt.Errorf("called with %d arguments instead of GUEST OP SUBOP EXTRA: this is libvirt's hook, not a command for people", len(args))
	}
	// libvirt feeds the XML through a pipe and gets on with it when the reader
	// goes, so what is left is not waited for.
	xml, err := io.ReadAll(io.LimitReader(stdin, maxXML+1))
	if err != nil || len(xml) > maxXML {
		xml = nil // the call counts, the XML is an extra
	}
	err = handover.Send(socket, handover.Message{
		Guest: args[0],
		Op:    args[1],
		SubOp: args[2],
		Extra: args[3],
		XML:   string(xml),
	}, time.Now().Add(sendLimit))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		// Only where it matters, and once for each start, not for each of the
		// hook's calls.
		if args[1] != "started" || !bytes.Contains(xml, []byte(namespaceURI)) {
			return nil
		}
		return fmt.Errorf("fraild is not running, so domain %q is not traced until it is: systemctl start fraild", args[0])
	}
	return err
}

// report writes err where it can be found: libvirt drops a hook's standard
// error unless the hook fails.
func report(err error) {
	fmt.Fprintf(os.Stderr, "frail-libvirt-hook: %v\n", err)
	log, logErr := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "frail-libvirt-hook")
	if logErr != nil {
		return
	}
	defer log.Close()
	_ = log.Warning(err.Error())
}
