// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"frail/qmp/layout"
)

// newLayoutImport returns "frail layout import".
func newLayoutImport() *cobra.Command {
	var vmlinux, btf, isf, buildID, dir string
	cmd := &cobra.Command{
		Use:   "import --vmlinux FILE | --btf FILE | --isf FILE",
		Short: "Import a guest kernel's symbols and types from a file",
		Long: `Import a guest kernel's symbols and types from a file, for kernels that do not
describe themselves: built without BTF, or without all of kallsyms. What the guest says of
its kernel goes before what was imported.

What is imported is kept by the kernel's build id, which "frail layout" and the error for
a kernel that lacks something tell. A vmlinux has it in it. Types of one file and symbols
of another can be imported one after the other.

fraild uses what was imported at the guest's next boot, or when it is restarted.`,
		Example: `  frail layout import --vmlinux vmlinux
  frail layout import --isf guest.json.xz --build-id 67e5e727aeb3cb468dfe1bb8f9738f944c3a7d50`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store := &layout.Store{Dir: dir}
			var (
				got layout.Imported
				err error
			)
			switch {
			case vmlinux != "":
				got, err = store.ImportVmlinux(cmd.Context(), vmlinux, buildID)
			case btf != "":
				got, err = store.ImportBTF(btf, buildID)
			default:
				got, err = store.ImportISF(cmd.Context(), isf, buildID)
			}
			if err != nil {
				return err
			}
			types := "no types"
			if got.Types {
				types = "types"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d symbols, %s\n", got.BuildID, got.Symbols, types)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&vmlinux, "vmlinux", "", "the kernel's uncompressed image, an ELF `FILE` with a symbol table and BTF or DWARF")
	flags.StringVar(&btf, "btf", "", "types: a BTF `FILE`, such as the guest's /sys/kernel/btf/vmlinux")
	flags.StringVar(&isf, "isf", "", "Volatility 3's symbol `FILE`: JSON, plain or compressed by xz or gzip")
	flags.StringVar(&buildID, "build-id", "", "the kernel's build `ID`; a vmlinux has it in it")
	flags.StringVar(&dir, "store", layout.DefaultStoreDir, "the `DIR` where it is kept")
	cmd.MarkFlagsMutuallyExclusive("vmlinux", "btf", "isf")
	cmd.MarkFlagsOneRequired("vmlinux", "btf", "isf")
	return cmd
}

// importedLayouts resolves layouts with what was imported.
func importedLayouts() *layout.Resolver {
	return &layout.Resolver{Store: &layout.Store{Dir: layout.DefaultStoreDir}}
}
