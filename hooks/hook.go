// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/sys/unix"

	"frail/hooks/handover"
)

// HookListener receives what the qemu hook hands over.
type HookListener = handover.Listener

// ListenHook opens the hook's socket at path, with mode 0600, in place of one
// that an earlier daemon left behind, for [Options].
func ListenHook(path string) (*HookListener, error) {
	return handover.Listen(path)
}

// serveHook calls nudge with the name of every domain the hook was called for,
// until l is closed. The message only says where to look: its contents are not
// believed over libvirt's.
func serveHook(l *HookListener, log *slog.Logger, nudge func(name string)) error {
	for {
		msg, err := l.Receive()
		if errors.Is(err, handover.ErrInvalid) {
			log.Warn("ignoring a datagram on the hook's socket", "err", err)
			continue
		}
		if err != nil {
			return err
		}
		log.Debug("hook called", "domain", msg.Guest, "op", msg.Op, "subop", msg.SubOp, "extra", msg.Extra)
		if err := checkName(msg.Guest); err != nil {
			log.Warn("ignoring a hook call", "err", err)
			continue
		}
		nudge(msg.Guest)
	}
}

// checkName reports a name that can be no domain's, because no status file can
// be called that.
func checkName(name string) error {
	if name == "" || len(name)+len(statusSuffix) > unix.NAME_MAX || strings.ContainsAny(name, "/\n\x00") {
		return fmt.Errorf("%s is not the name of a domain", quote(name))
	}
	return nil
}
