// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"frail/api"
)

func newListCmd(opts *options) *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List domains and whether they are traced",
		Long: `List the domains that run and whether their system calls are traced.

States:
  traced                        with the guest process that made each call
  traced (no identity: REASON)  without it
  resolving                     traced; the guest's kernel is not known yet
  arming                        about to be traced
  error: REASON                 asks to be traced and is not
  not traced (disabled)         does not ask to be traced
  shut off                      does not run

Coverage is "full", or which ways into the guest's kernel are not seen now because the guest
uses its debug registers.`,
		Example: `  frail list
  frail list --all
  frail list --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := dialDaemon(opts.socket)
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.List(cmd.Context(), &api.ListRequest{All: all})
			if err != nil {
				return fmt.Errorf("list domains: %w", err)
			}
			if err := opts.checkURI(list.GetUri()); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			rows := make([][]string, 0, len(list.GetDomains()))
			for _, d := range list.GetDomains() {
				id := "-"
				if d.GetActive() {
					id = strconv.Itoa(int(d.GetId()))
				}
				rows = append(rows, []string{id, d.GetName(), coverageText(d.GetVm()), stateText(d)})
			}
			var header []string
			if !opts.quiet {
				header = []string{"Id", "Name", "Coverage", "State"}
			}
			return writeTable(cmd.OutOrStdout(), header, rows)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also list domains that are shut off")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document")
	return cmd
}

// stateText describes what fraild does with d.
func stateText(d *api.Domain) string {
	switch d.GetState() {
	case api.State_STATE_SHUT_OFF:
		if d.GetReason() != "" {
			return "shut off (error: " + d.GetReason() + ")"
		}
		return "shut off"
	case api.State_STATE_NOT_TRACED:
		return "not traced (disabled)"
	case api.State_STATE_ARMING:
		return "arming"
	case api.State_STATE_RESOLVING:
		return "resolving"
	case api.State_STATE_TRACED:
		return "traced"
	case api.State_STATE_NO_IDENTITY:
		return "traced (no identity: " + d.GetReason() + ")"
	case api.State_STATE_ERROR:
		return "error: " + d.GetReason()
	default:
		return fmt.Sprintf("unknown state %d: frail and fraild are of different versions", d.GetState())
	}
}

// coverageText describes which ways into the guest's kernel are seen. A domain that is not
// armed has no vm.
func coverageText(vm *api.VM) string {
	switch {
	case len(vm.GetBlind()) > 0:
		names := make([]string, 0, len(vm.GetBlind()))
		for _, e := range vm.GetBlind() {
			names = append(names, strings.ToLower(strings.TrimPrefix(e.String(), "ENTRY_")))
		}
		return "not seen: " + strings.Join(names, ", ")
	case len(vm.GetCovered()) > 0:
		return "full"
	default:
		return "-"
	}
}

// writeJSON prints what fraild said with every field, in snake_case.
func writeJSON(w io.Writer, list *api.ListResponse) error {
	text, err := protojson.MarshalOptions{
		Multiline:       true,
		UseProtoNames:   true,
		EmitUnpopulated: true,
	}.Marshal(list)
	if err != nil {
		return fmt.Errorf("format list: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}
