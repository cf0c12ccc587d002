// SPDX-License-Identifier: Apache-2.0

// Command lab-truth compares what Frail recorded of a guest with what the
// guest's own kernel recorded, prints counts and the first difference, and
// fails if there is any.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"frail/lab/truth"
)

func main() {
	if err := newRoot().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	var drop int
	cmd := &cobra.Command{
		Use:   "lab-truth DIRECTORY",
		Short: "Compare a guest's record of its calls with the host's",
		Long: `Compare a guest's record of its calls with the host's, both in a directory that
the proof's tests left (proof.test -keep), and print counts and the first
difference. The exit status is 1 if there is any.`,
		Args:          cobra.ExactArgs(1),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(_ *cobra.Command, args []string) error {
			guest, host, err := truth.Load(args[0])
			if err != nil {
				return err
			}
			if drop != 0 {
				host = truth.Drop(host, drop)
			}
			r, err := truth.Compare(guest, host)
			if err != nil {
				return err
			}
			fmt.Println(r)
			if !r.Equal() {
				fmt.Println(r.First)
				return errors.New("the records differ")
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&drop, "drop", 0, "leave out the host's nth call, to see that it is missed")
	return cmd
}
