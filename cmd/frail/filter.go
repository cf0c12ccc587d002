// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/spf13/pflag"

// addFilters adds the flags that choose events. verb is what a command does with them.
func (t *traceOptions) addFilters(flags *pflag.FlagSet, verb string) {
	f := &t.start
	flags.StringVar(&f.Syscalls, "filter-syscall", "", verb+" only these system calls: names, numbers and strace's classes, such as %file, separated by commas; all but these after a `LIST`'s leading !, as in all filters that are lists")
	flags.StringVar(&f.Comm, "filter-comm", "", verb+" only threads of these names, a `LIST`")
	flags.StringVar(&f.Pid, "filter-pid", "", verb+" only the processes of these ids in the guest, a `LIST`")
	flags.StringVar(&f.Tid, "filter-tid", "", verb+" only the threads of these ids in the guest, a `LIST`")
	flags.StringVar(&f.Uid, "filter-uid", "", verb+" only threads of these real user ids, a `LIST` of numbers")
	flags.StringVar(&f.Exe, "filter-exe", "", verb+" only what runs these executables, a `LIST` of paths; of a directory, which ends in /, all in it")
	flags.StringVar(&f.Container, "filter-container", "", verb+" only these containers, a `LIST` of ids, of 12 digits at least, and names")
	flags.StringVar(&f.Error, "filter-error", "", verb+" only calls that return these errors, a `LIST` of names such as ENOENT, and numbers")
	flags.StringVar(&f.Returns, "filter-return", "", verb+" only calls that return these values, a `LIST` of numbers and of ranges such as 1..9 and 1..")
	flags.BoolVar(&f.Failed, "failed", false, verb+" only calls that return an error")
	flags.BoolVar(&f.Follow, "follow", false, "with the processes that filters name, "+verb+" those that descend from them")
	flags.BoolVar(&f.Unknown, "unknown", false, verb+" also what filters cannot judge, because who made a call or what it returned is not known")
}
