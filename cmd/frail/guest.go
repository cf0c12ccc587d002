// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode/utf16"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"frail/api"
	"frail/cmd/internal/exit"
	"frail/cmd/internal/guest"
	"frail/qmp"
	"frail/qmp/layout"
)

// guestOptions are the flags of commands that look into a guest: of a domain through
// fraild, or of a QEMU without libvirt and fraild.
type guestOptions struct {
	qmp string
	pid int
}

// addTo adds the flags, and the argument DOMAIN.
func (o *guestOptions) addTo(cmd *cobra.Command, opts *options) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if o.qmp != "" {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return opts.completeDomain(cmd, args, text)
	}
	cmd.Flags().StringVar(&o.qmp, "qmp", "", "of the QEMU that serves this QMP `SOCKET`, without libvirt and fraild")
	cmd.Flags().IntVar(&o.pid, "pid", 0, "with --qmp: QEMU's process `ID`, if it forked since it made the socket (-daemonize)")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		switch {
		case o.qmp == "" && o.pid != 0:
			return errors.New("--pid is for --qmp")
		case o.qmp == "":
			return exactDomain(cmd, args)
		case len(args) > 0:
			return fmt.Errorf("DOMAIN '%s' and --qmp exclude each other", args[0])
		default:
			return nil
		}
	}
}

// insight is a guest that can be looked into.
type insight interface {
	Processes(ctx context.Context, req *api.ProcessesRequest, each func(*api.ProcessesResponse) error) error
	KernelLog(ctx context.Context, each func(*api.KernelLogResponse) error) error
	Layout(ctx context.Context) (*api.GuestLayout, error)
}

// withGuest calls f with the guest that the command line names.
func (o *guestOptions) withGuest(ctx context.Context, opts *options, args []string, f func(insight) error) error {
	if o.qmp == "" {
		return opts.withDaemon(ctx, func(d *daemon) error { return f(daemonGuest{d, args[0]}) })
	}
	q, err := o.dial(ctx)
	if err != nil {
		return err
	}
	defer q.close()
	mem, err := q.openMemory(ctx)
	if err != nil {
		return err
	}
	defer mem.Close()
	l, err := q.layouts.Resolve(ctx, mem, mem.Ranges(), layout.Hint{})
	if err != nil {
		return err
	}
	return f(ownGuest{&guest.Guest{Memory: mem, Layout: l}})
}

// qemu is a QEMU without libvirt.
type qemu struct {
	monitor *qmp.SocketMonitor
	pid     int
	layouts *layout.Resolver
}

func (o *guestOptions) dial(ctx context.Context) (*qemu, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	m, err := qmp.Dial(ctx, o.qmp)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: another program may be using it", err)
	}
	if err != nil {
		return nil, exit.With(exit.Unreachable, err)
	}
	q := &qemu{monitor: m, pid: o.pid, layouts: importedLayouts()}
	if q.pid == 0 {
		if q.pid, err = m.PeerPID(); err != nil {
			return nil, errors.Join(err, m.Disconnect())
		}
	}
	return q, nil
}

func (q *qemu) close() {
	// Nothing is lost with the connection.
	_ = q.monitor.Disconnect()
}

func (q *qemu) openMemory(ctx context.Context) (*qmp.Memory, error) {
	return qmp.OpenMemory(ctx, qmp.MemoryOptions{Monitor: q.monitor, PID: q.pid, SaveDir: os.TempDir()})
}

// ownGuest is a guest whose memory this process reads.
type ownGuest struct{ *guest.Guest }

func (g ownGuest) Layout(context.Context) (*api.GuestLayout, error) { return g.Describe(), nil }

// daemonGuest is the guest of a domain, read by fraild.
type daemonGuest struct {
	client api.FrailClient
	domain string
}

func (g daemonGuest) Processes(ctx context.Context, req *api.ProcessesRequest, each func(*api.ProcessesResponse) error) error {
	req.Domain = g.domain
	stream, err := g.client.Processes(ctx, req)
	return receive(stream, err, each)
}

func (g daemonGuest) KernelLog(ctx context.Context, each func(*api.KernelLogResponse) error) error {
	stream, err := g.client.KernelLog(ctx, &api.KernelLogRequest{Domain: g.domain})
	return receive(stream, err, each)
}

func (g daemonGuest) Layout(ctx context.Context) (*api.GuestLayout, error) {
	return g.client.Layout(ctx, &api.LayoutRequest{Domain: g.domain})
}

// receive calls each with every message of a stream, which err says could not be opened.
func receive[M any](stream grpc.ServerStreamingClient[M], err error, each func(*M) error) error {
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err == nil {
			err = each(m)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// appendJSON appends v as JSON on a line, in ASCII: a terminal acts on nothing in it,
// whatever a guest put there.
func appendJSON(dst []byte, v any) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return dst, fmt.Errorf("format: %w", err)
	}
	const del = 0x7f
	for _, r := range text.String() {
		switch {
		case r < del:
			dst = append(dst, byte(r))
		case r > 0xffff:
			a, b := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, a, b)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
	}
	return dst, nil
}

// writeAll writes text that a formatter returned.
func writeAll(w io.Writer, text []byte, err error) error {
	if err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
