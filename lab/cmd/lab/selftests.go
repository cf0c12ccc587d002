// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"frail/lab/image"
)

func newSelftests(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "selftests",
		Short: "Build the x86 self-tests of the host's kernel if their inputs changed, and print where the cache has them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := image.BuildSelftests(cmd.Context(), *name, os.Stderr)
			if err != nil {
				return err
			}
			fmt.Println(dir)
			return nil
		},
	}
}
