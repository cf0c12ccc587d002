// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"frail/cmd/internal/config"
)

func newConfigCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Look at fraild's configuration",
		Long: `Look at fraild's configuration. The files are read as fraild reads them when it starts;
fraild need not run.`,
		Example: `  frail config check`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigCheckCmd())
	return cmd
}

func newConfigCheckCmd() *cobra.Command {
	var path string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Print the configuration that is in effect, or what is wrong with it",
		Long: `Print the configuration that is in effect at fraild's next start, with the file and line
that each value is from; or every mistake in its files, with file and line. If there is
one the exit status is 1.

Files are ` + config.DefaultPath + ` and the drop-ins conf.d/*.toml beside it, in the
order of their names. Of a key that several have, the last one counts.`,
		Example: `  frail config check
  frail config check --config ./frail.toml && install -m 0644 frail.toml /etc/frail/
  frail config check --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// As fraild: the file that is always looked for may be missing.
			must := path != ""
			if !must {
				path = config.DefaultPath
			}
			loaded, err := config.Load(path, must)
			mistakes, ok := errors.AsType[config.Errors](err)
			switch {
			case err != nil && !ok:
				return err
			case asJSON:
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(struct {
					Configuration *config.Loaded `json:"configuration"`
					Errors        config.Errors  `json:"errors"`
				}{loaded, append(config.Errors{}, mistakes...)})
			case len(mistakes) > 0:
				for _, m := range mistakes {
					fmt.Fprintln(cmd.ErrOrStderr(), "error:", printable(m.Error()))
				}
				err = nil
			default:
				err = loaded.WriteTOML(cmd.OutOrStdout())
			}
			if err == nil && len(mistakes) > 0 {
				err = errReported
			}
			return err
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "check this `FILE` (default "+config.DefaultPath+", if it exists)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document")
	return cmd
}
