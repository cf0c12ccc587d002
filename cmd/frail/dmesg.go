// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"frail/api"
	"frail/cmd/internal/exit"
)

func newDmesgCmd(opts *options) *cobra.Command {
	var g guestOptions
	var levels string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dmesg DOMAIN | dmesg --qmp SOCKET",
		Short: "Show the log of a guest's kernel, read from its memory",
		Long: `Show the log of a guest's kernel, as dmesg(1) in the guest would: read from its memory from
outside. It needs Linux 5.10 or later in the guest.

Levels: ` + strings.Join(levelNames, ", ") + `.`,
		Example: `  frail dmesg guest1
  frail dmesg guest1 --level err,warn
  frail dmesg guest1 --level warn+
  frail dmesg --qmp /run/vm.qmp --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := parseLevels(levels)
			if err != nil {
				return err
			}
			return g.withGuest(cmd.Context(), opts, args, func(in insight) error {
				return showLog(cmd.Context(), in, cmd.OutOrStdout(), wanted, asJSON)
			})
		},
	}
	g.addTo(cmd, opts)
	cmd.Flags().StringVarP(&levels, "level", "l", "", "show only messages of these levels, a `LIST` separated by commas; LEVEL+ is that level and all above it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document a line")
	return cmd
}

// levelNames are dmesg(1)'s, by number.
var levelNames = []string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}

// facilityNames are syslog's, by number.
var facilityNames = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"}

// parseLevels returns the levels in a list, by number; all if it is empty.
func parseLevels(list string) (map[uint32]bool, error) {
	wanted := make(map[uint32]bool)
	for name := range strings.SplitSeq(list, ",") {
		name, above := strings.CutSuffix(name, "+")
		n := slices.Index(levelNames, name)
		if list == "" {
			n, above = len(levelNames)-1, true
		}
		if n < 0 {
			return nil, exit.Usagef("--level: no level '%s': there are %s", name, strings.Join(levelNames, ", "))
		}
		wanted[uint32(n)] = true
		for i := 0; above && i < n; i++ {
			wanted[uint32(i)] = true
		}
	}
	return wanted, nil
}

func showLog(ctx context.Context, in insight, w io.Writer, levels map[uint32]bool, asJSON bool) error {
	return in.KernelLog(ctx, func(m *api.KernelLogResponse) error {
		var text []byte
		for _, rec := range m.GetRecords() {
			if !levels[rec.GetLevel()] {
				continue
			}
			if !asJSON {
				text = appendRecord(text, rec)
				continue
			}
			var err error
			if text, err = appendRecordJSON(text, rec); err != nil {
				return err
			}
		}
		return writeAll(w, text, nil)
	})
}

// appendRecord appends a message as dmesg(1) prints it.
func appendRecord(dst []byte, rec *api.LogRecord) []byte {
	at := time.Duration(rec.GetNano())
	for line := range bytes.SplitSeq(rec.GetText(), []byte("\n")) {
		dst = fmt.Appendf(dst, "[%5d.%06d] %s\n", at/time.Second, at%time.Second/time.Microsecond, printableLine(line))
	}
	return dst
}

// printableLine is printable, but for tabs, which the kernel uses.
func printableLine(line []byte) string {
	parts := strings.Split(string(line), "\t")
	for i := range parts {
		parts[i] = printable(parts[i])
	}
	return strings.Join(parts, "\t")
}

func appendRecordJSON(dst []byte, rec *api.LogRecord) ([]byte, error) {
	name := func(names []string, n uint32) string {
		if int(n) < len(names) {
			return names[n]
		}
		return fmt.Sprint(n)
	}
	caller := fmt.Sprintf("T%d", rec.GetCaller())
	if rec.GetInInterrupt() {
		caller = fmt.Sprintf("C%d", rec.GetCaller())
	}
	return appendJSON(dst, struct {
		Seq      uint64  `json:"seq"`
		Time     float64 `json:"time"` // seconds since the guest's boot
		Facility string  `json:"facility"`
		Level    string  `json:"level"`
		Caller   string  `json:"caller"`
		Text     string  `json:"text"`
	}{rec.GetSeq(), time.Duration(rec.GetNano()).Seconds(), name(facilityNames, rec.GetFacility()), name(levelNames, rec.GetLevel()), caller, string(rec.GetText())})
}
