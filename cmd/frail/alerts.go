// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"frail/api"
	"frail/tracer/ph"
)

func newAlertsCmd(opts *options) *cobra.Command {
	var loop, asJSON bool
	var readyFile string
	cmd := &cobra.Command{
		Use:   "alerts [DOMAIN]",
		Short: "Show the alerts of the sequence analysis",
		Long: `Show the alerts of the sequence analysis that fraild remembers, the oldest first.

Kinds:
  attack     a thread made many anomalous calls among its last 128
  processes  many of an executable's last processes made anomalous calls
  drift      an executable made many anomalous calls since it was normal: it changed, or
             was learnt too briefly; it is learnt anew before it is judged again
  limit      a limit of the configuration was reached: calls are not analysed

The sequence is of the call that raised the alert and the eight before it, the newest last.
A ! stands before those that made a pair with it that the executable never made.`,
		Example: `  frail alerts
  frail alerts guest1 --loop
  frail alerts --json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: opts.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &api.AlertsRequest{Follow: loop}
			if len(args) > 0 {
				req.Domain = args[0]
			}
			return opts.withDaemon(cmd.Context(), func(d *daemon) error {
				return showAlerts(cmd.Context(), d, req, cmd.OutOrStdout(), asJSON, readyFile)
			})
		},
	}
	cmd.Flags().BoolVar(&loop, "loop", false, "also show the alerts that come, until Ctrl-C")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document a line")
	cmd.Flags().StringVar(&readyFile, "ready-file", "", "create `FILE` when all alerts from then on are shown")
	return cmd
}

func showAlerts(ctx context.Context, client api.FrailClient, req *api.AlertsRequest, w io.Writer, asJSON bool, readyFile string) error {
	stream, err := client.Alerts(ctx, req)
	if err != nil {
		return err
	}
	if _, err := stream.Header(); err != nil {
		return err
	}
	if readyFile != "" {
		if err := os.WriteFile(readyFile, nil, 0o644); err != nil {
			return fmt.Errorf("create ready file: %w", err)
		}
	}
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF), err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := writeAlert(w, m.GetName(), m.GetUuid(), time.Unix(0, m.GetUnixNano()), alertOf(m), asJSON); err != nil {
			return err
		}
	}
}

// alertOf returns what a message says.
func alertOf(m *api.Alert) *ph.Alert {
	a := &ph.Alert{
		Time: m.GetBootNano(), VM: m.GetVm(), PID: m.GetPid(), TGID: m.GetTgid(), Executable: string(m.GetExecutable()),
		Comm: string(m.GetComm()), Miss: uint8(m.GetMiss()), LFC: uint8(m.GetLfc()), MaxLFC: uint8(m.GetMaxLfc()), Anomalies: m.GetAnomalies(),
		Limit: int(m.GetLimit()), Count: m.GetCount(),
	}
	for _, k := range []ph.AlertKind{ph.AlertDrift, ph.AlertAttack, ph.AlertProcesses, ph.AlertLimit} {
		if k.String() == m.GetKind() {
			a.Kind = k
		}
	}
	for i := range a.Calls {
		a.Calls[i] = ph.NoNumber
	}
	for i, n := range m.GetCalls() {
		if i < len(a.Calls) {
			a.Calls[i] = ph.Number(n)
		}
	}
	for i, word := range m.GetFrame() {
		if i < len(a.Frame) {
			a.Frame[i] = word
		}
	}
	return a
}

// writeAlert prints an alert as a line.
func writeAlert(w io.Writer, domain, uuid string, at time.Time, a *ph.Alert, asJSON bool) error {
	if !asJSON {
		_, err := fmt.Fprintf(w, "%s %s %s\n", at.Format("2006-01-02 15:04:05.000"), printable(domain), a)
		return err
	}
	doc := struct {
		Kind       string   `json:"kind"`
		Time       string   `json:"time"`
		BootNS     uint64   `json:"boot_ns"`
		Domain     string   `json:"domain"`
		UUID       string   `json:"uuid,omitempty"`
		VM         uint32   `json:"vm"`
		PID        int32    `json:"pid"`
		TGID       int32    `json:"tgid"`
		Executable string   `json:"executable"`
		Comm       string   `json:"comm"`
		Calls      []string `json:"calls,omitempty"`
		Missed     []int    `json:"missed,omitempty"`
		LFC        uint8    `json:"lfc"`
		MaxLFC     uint8    `json:"max_lfc"`
		History    string   `json:"history,omitempty"`
		Anomalies  uint64   `json:"anomalies"`
		Limit      string   `json:"limit,omitempty"`
		Count      uint64   `json:"count,omitempty"`
		Misses     int      `json:"misses,omitempty"`
	}{
		Kind: a.Kind.String(), Time: at.UTC().Format("2006-01-02T15:04:05.000000000Z"), BootNS: a.Time, Domain: domain, UUID: uuid,
		VM: a.VM, PID: a.PID, TGID: a.TGID, Executable: printable(a.Executable), Comm: printable(a.Comm),
		LFC: a.LFC, MaxLFC: a.MaxLFC, Anomalies: a.Anomalies,
	}
	if a.Kind == ph.AlertLimit {
		doc.Limit, doc.Count = ph.LimitName(a.Limit), a.Count
		return json.NewEncoder(w).Encode(&doc)
	}
	for _, n := range a.Calls {
		doc.Calls = append(doc.Calls, n.String())
	}
	if a.Kind == ph.AlertStide {
		doc.Misses = a.Misses
	} else {
		doc.Missed, doc.History = ph.Distances(a.Miss), a.History()
	}
	return json.NewEncoder(w).Encode(&doc)
}
