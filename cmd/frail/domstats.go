// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"frail/api"
)

func newDomstatsCmd(opts *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "domstats [DOMAIN...]",
		Short: "Show the figures of domains: calls, losses, alerts, layout",
		Long: `Show the figures of the domains given, or of all, as virsh domstats shows libvirt's.

The names are those of the metrics that fraild serves to Prometheus, without "frail_" and
"_total"; the values of a metric's labels follow it: vm_exits.syscall. docs/metrics.md says
what each means. A figure that is not known now is left out: a domain that is not armed has
no vm_exits.`,
		Example: `  frail domstats
  frail domstats web1 db1
  frail domstats --json`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: opts.completeDomains,
		RunE: func(cmd *cobra.Command, args []string) error {
			return opts.withDaemon(cmd.Context(), func(d *daemon) error {
				resp, err := d.Stats(cmd.Context(), &api.StatsRequest{Domains: args})
				if err != nil {
					return err
				}
				if asJSON {
					return writeStatsJSON(cmd.OutOrStdout(), resp)
				}
				return writeStats(cmd.OutOrStdout(), resp)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document")
	return cmd
}

// writeStats prints figures as virsh domstats does.
func writeStats(w io.Writer, resp *api.StatsResponse) error {
	out := bufio.NewWriter(w)
	for _, d := range resp.GetDomains() {
		fmt.Fprintf(out, "Domain: '%s'\n", printable(d.GetName()))
		for _, s := range d.GetStats() {
			fmt.Fprintf(out, "  %s=%s\n", s.GetKey(), strconv.FormatFloat(s.GetValue(), 'f', -1, 64))
		}
		fmt.Fprintln(out)
	}
	return out.Flush()
}

func writeStatsJSON(w io.Writer, resp *api.StatsResponse) error {
	type domain struct {
		Name  string             `json:"name"`
		UUID  string             `json:"uuid"`
		Stats map[string]float64 `json:"stats"`
	}
	doc := struct {
		Domains []domain `json:"domains"`
	}{Domains: []domain{}}
	for _, d := range resp.GetDomains() {
		stats := make(map[string]float64, len(d.GetStats()))
		for _, s := range d.GetStats() {
			stats[s.GetKey()] = s.GetValue()
		}
		doc.Domains = append(doc.Domains, domain{d.GetName(), d.GetUuid(), stats})
	}
	return json.NewEncoder(w).Encode(&doc)
}
