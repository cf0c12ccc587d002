// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"libvirt.org/go/libvirt"

	"frail/cmd/internal/exit"
	"frail/hooks"
)

func newEnableCmd(opts *options) *cobra.Command {
	var exits string
	var parsed *hooks.Exits // nil: the domain keeps its own
	cmd := newMetadataCmd(opts, metadataCmd{
		name:  "enable",
		short: "Ask for a domain's system calls to be traced",
		done:  "Domain '%s' enabled for tracing\n",
		apply: func(dom *libvirt.Domain, live, config bool) error {
			return hooks.Enable(dom, live, config, parsed)
		},
	})
	cmd.Long += `

--exits entry traps entries alone, one exit a call instead of two: what a call returned is
then told at its thread's next call, or not known. Without --exits a domain keeps those it
has; it begins with both. A running domain that is traced changes over at once, and traces
of it end.`
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if exits == "" {
			return nil
		}
		e, err := hooks.ParseExits(exits)
		parsed = &e
		if err != nil {
			return fmt.Errorf("--exits: %w", err)
		}
		return nil
	}
	cmd.Example = `  frail enable guest1
  frail enable guest1 --live --config
  frail enable guest1 --exits entry`
	cmd.Flags().StringVar(&exits, "exits", "", "what traps, by `MODE`: both or entry")
	return cmd
}

func newDisableCmd(opts *options) *cobra.Command {
	cmd := newMetadataCmd(opts, metadataCmd{
		name:  "disable",
		short: "Stop asking for a domain's system calls to be traced",
		done:  "Domain '%s' disabled for tracing\n",
		apply: hooks.Disable,
	})
	cmd.Example = `  frail disable guest1
  frail disable guest1 --live --config`
	return cmd
}

// metadataCmd is a command that edits Frail's element in a domain's metadata.
type metadataCmd struct {
	name, short, done string
	apply             func(dom *libvirt.Domain, live, config bool) error
}

func newMetadataCmd(opts *options, m metadataCmd) *cobra.Command {
	var live, config, current bool
	cmd := &cobra.Command{
		Use:   m.name + " DOMAIN",
		Short: m.short,
		Long: m.short + `, by Frail's element in its libvirt metadata.

fraild follows the metadata of running domains: --live takes effect at once, --config
at the next start.`,
		Args:              exactDomain,
		ValidArgsFunction: opts.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := connect(opts.uri)
			if err != nil {
				return err
			}
			defer conn.Close()
			dom, err := lookup(conn, args[0])
			if err != nil {
				return err
			}
			defer dom.Free()
			if err := m.apply(dom, live, config); err != nil {
				return err
			}
			if opts.quiet {
				return nil
			}
			name, err := dom.GetName()
			if err != nil {
				return fmt.Errorf("get domain's name: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), m.done, printable(name))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&live, "live", false, "change the running domain")
	flags.BoolVar(&config, "config", false, "change the persistent configuration, for the next start")
	flags.BoolVar(&current, "current", false, "change the running domain if it runs, else the configuration (default)")
	cmd.MarkFlagsMutuallyExclusive("current", "live")
	cmd.MarkFlagsMutuallyExclusive("current", "config")
	return cmd
}

// exactDomain accepts one argument, the domain.
func exactDomain(cmd *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return fmt.Errorf("command '%s' requires DOMAIN: a domain's name, id or UUID", cmd.Name())
	case 1:
		return nil
	default:
		return fmt.Errorf("unexpected data '%s' after DOMAIN", args[1])
	}
}

// connect opens a libvirt connection. An empty uri means libvirt's own default, which
// honours LIBVIRT_DEFAULT_URI.
func connect(uri string) (*libvirt.Connect, error) {
	conn, err := libvirt.NewConnect(uri)
	if err != nil {
		return nil, exit.With(exit.Unreachable, fmt.Errorf("failed to connect to the hypervisor: %w", err))
	}
	return conn, nil
}

// uuidLen is the length of a UUID in text.
const uuidLen = 36

// lookup finds a domain by the id of a running one, UUID or name, in that order, as virsh
// does. The caller frees it.
func lookup(conn *libvirt.Connect, key string) (*libvirt.Domain, error) {
	if id, err := strconv.ParseUint(key, 10, 31); err == nil {
		if dom, err := conn.LookupDomainById(uint32(id)); err == nil {
			return dom, nil
		}
	}
	if len(key) == uuidLen {
		if dom, err := conn.LookupDomainByUUIDString(key); err == nil {
			return dom, nil
		}
	}
	dom, err := conn.LookupDomainByName(key)
	if err != nil {
		return nil, fmt.Errorf("failed to get domain '%s': %w", printable(key), err)
	}
	return dom, nil
}
