// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"frail/api"
)

func newPsCmd(opts *options) *cobra.Command {
	var g guestOptions
	var p psOptions
	cmd := &cobra.Command{
		Use:   "ps DOMAIN | ps --qmp SOCKET",
		Short: "List the processes of a guest, read from its memory",
		Long: `List the processes of a guest, read from its memory from outside. The domain need not be
traced, and the guest does not notice.

Start is the time since the guest's boot, in seconds. A command in brackets is the name of a
process whose arguments are not known: of a kernel thread, a zombie, or one that is swapped out.
"?" is not known; --json says why.`,
		Example: `  frail ps guest1
  frail ps guest1 --tree
  frail ps --qmp /run/vm.qmp --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.withGuest(cmd.Context(), opts, args, func(in insight) error {
				p.header = !opts.quiet
				return p.run(cmd.Context(), in, cmd.OutOrStdout())
			})
		},
	}
	g.addTo(cmd, opts)
	cmd.Flags().BoolVar(&p.tree, "tree", false, "show each process below the one that made it")
	cmd.Flags().BoolVar(&p.threads, "threads", false, "show every thread")
	cmd.Flags().BoolVar(&p.json, "json", false, "print JSON, one document")
	return cmd
}

// psOptions are the flags of frail ps.
type psOptions struct {
	tree, threads, json, header bool
}

func (o *psOptions) run(ctx context.Context, in insight, w io.Writer) error {
	var all []*api.Process
	err := in.Processes(ctx, &api.ProcessesRequest{Arguments: true, Threads: o.threads}, func(m *api.ProcessesResponse) error {
		for _, p := range m.GetProcesses() {
			if n := len(all); p.GetContinued() && n > 0 {
				all[n-1].Threads = append(all[n-1].Threads, p.GetThreads()...)
				continue
			}
			all = append(all, p)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if o.json {
		return writeProcessesJSON(w, all)
	}
	indent := make([]string, len(all))
	if o.tree {
		all, indent = treeOf(all)
	}
	header := []string{"Pid", "Ppid", "Uid", "State", "Start", "Container", "Command"}
	if o.threads {
		header = append([]string{"Pid", "Tid"}, header[1:]...)
	}
	var rows [][]string
	for i, p := range all {
		row := psRow(p, indent[i])
		if !o.threads {
			rows = append(rows, row)
			continue
		}
		threads := p.GetThreads()
		if len(threads) == 0 {
			threads = []*api.GuestThread{{Tid: p.GetPid(), Comm: p.GetComm(), State: p.GetState()}}
		}
		for _, t := range threads {
			r := append([]string{row[0], strconv.Itoa(int(t.GetTid()))}, row[1:]...)
			if t.GetTid() != p.GetPid() {
				const state, command = 4, 7
				r[state], r[command] = orUnknown(t.GetState()), indent[i]+"{"+string(t.GetComm())+"}"
			}
			rows = append(rows, r)
		}
	}
	if !o.header {
		header = nil
	}
	return writeTable(w, header, rows)
}

// psRow is a process as frail ps shows it.
func psRow(p *api.Process, indent string) []string {
	known := func(field, text string) string {
		if _, unknown := p.GetUnknown()[field]; unknown {
			return "?"
		}
		return text
	}
	return []string{
		strconv.Itoa(int(p.GetPid())),
		known("parent", strconv.Itoa(int(p.GetParent()))),
		known("credentials", strconv.FormatUint(uint64(p.GetUid()), 10)),
		orUnknown(p.GetState()),
		known("start", fmt.Sprintf("%.2f", time.Duration(p.GetStartNano()).Seconds())),
		known("cgroup", containerText(p)),
		indent + commandText(p),
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "?"
	}
	return s
}

// containerText names a process's container as its runtime does.
func containerText(p *api.Process) string {
	id := string(p.GetContainerId())
	if id == "" {
		return "-"
	}
	const idLen, shown = 64, 12
	if len(id) == idLen {
		id = id[:shown]
	}
	if r := p.GetContainerRuntime(); r != "" {
		return r + ":" + id
	}
	return id
}

// commandText is what ps(1) shows for a process's command.
func commandText(p *api.Process) string {
	if len(p.GetArguments()) == 0 {
		return "[" + string(p.GetComm()) + "]"
	}
	var text strings.Builder
	for i, a := range p.GetArguments() {
		if i > 0 {
			text.WriteByte(' ')
		}
		text.Write(a)
	}
	if p.GetArgumentsCut() {
		text.WriteString(" ...")
	}
	return text.String()
}

// maxIndent bounds how far a tree leans to the right: a guest may make chains of processes
// as long as it likes.
const maxIndent = 40

// treeOf returns the processes, each after its parent, and what comes before their commands.
// Processes whose parent is not there, or that are parents of each other, are roots.
func treeOf(all []*api.Process) (sorted []*api.Process, indent []string) {
	children := make(map[int32][]*api.Process)
	known := make(map[int32]bool)
	for _, p := range all {
		known[p.GetPid()] = true
	}
	var roots []*api.Process
	for _, p := range all {
		if known[p.GetParent()] && p.GetParent() != p.GetPid() {
			children[p.GetParent()] = append(children[p.GetParent()], p)
		} else {
			roots = append(roots, p)
		}
	}
	shown := make(map[*api.Process]bool)
	var show func(p *api.Process, depth int)
	show = func(p *api.Process, depth int) {
		if shown[p] {
			return
		}
		shown[p] = true
		text := ""
		if depth > 0 {
			text = strings.Repeat("    ", min(depth-1, maxIndent)) + ` \_ `
		}
		sorted, indent = append(sorted, p), append(indent, text)
		for _, c := range children[p.GetPid()] {
			show(c, depth+1)
		}
	}
	// What no root leads to is in a circle.
	for _, p := range append(roots, all...) {
		show(p, 0)
	}
	return sorted, indent
}

// processJSON is a process in frail ps --json.
type processJSON struct {
	PID              int32             `json:"pid"`
	Parent           int32             `json:"ppid"`
	Comm             string            `json:"comm"`
	State            string            `json:"state"`
	KernelThread     bool              `json:"kernel_thread"`
	Start            float64           `json:"start"` // seconds since the guest's boot
	UID              uint32            `json:"uid"`
	GID              uint32            `json:"gid"`
	EUID             uint32            `json:"euid"`
	Exe              string            `json:"exe"`
	ExeDeleted       bool              `json:"exe_deleted"`
	ExeMemory        bool              `json:"exe_memfd"`
	Arguments        []string          `json:"args"`
	ArgumentsCut     bool              `json:"args_cut,omitempty"`
	NamespacePID     int32             `json:"ns_pid"`
	PIDNamespace     uint32            `json:"pid_ns"`
	MountNamespace   uint32            `json:"mnt_ns"`
	Cgroup           string            `json:"cgroup"`
	ContainerRuntime string            `json:"container_runtime,omitempty"`
	ContainerID      string            `json:"container_id,omitempty"`
	ThreadCount      uint32            `json:"thread_count"`
	Threads          []threadJSON      `json:"threads,omitempty"`
	Unknown          map[string]string `json:"unknown,omitempty"` // why fields are not known
}

type threadJSON struct {
	TID   int32  `json:"tid"`
	Comm  string `json:"comm"`
	State string `json:"state"`
}

func writeProcessesJSON(w io.Writer, all []*api.Process) error {
	out := make([]processJSON, 0, len(all))
	for _, p := range all {
		j := processJSON{
			PID: p.GetPid(), Parent: p.GetParent(), Comm: string(p.GetComm()), State: p.GetState(),
			KernelThread: p.GetKernelThread(), Start: time.Duration(p.GetStartNano()).Seconds(),
			UID: p.GetUid(), GID: p.GetGid(), EUID: p.GetEuid(),
			Exe: string(p.GetExe()), ExeDeleted: p.GetExeDeleted(), ExeMemory: p.GetExeMemory(),
			Arguments: []string{}, ArgumentsCut: p.GetArgumentsCut(),
			NamespacePID: p.GetNamespacePid(), PIDNamespace: p.GetPidNamespace(), MountNamespace: p.GetMntNamespace(),
			Cgroup: string(p.GetCgroup()), ContainerRuntime: p.GetContainerRuntime(), ContainerID: string(p.GetContainerId()),
			ThreadCount: p.GetThreadCount(), Unknown: p.GetUnknown(),
		}
		for _, a := range p.GetArguments() {
			j.Arguments = append(j.Arguments, string(a))
		}
		for _, t := range p.GetThreads() {
			j.Threads = append(j.Threads, threadJSON{t.GetTid(), string(t.GetComm()), t.GetState()})
		}
		out = append(out, j)
	}
	text, err := appendJSON(nil, map[string]any{"processes": out})
	return writeAll(w, text, err)
}
