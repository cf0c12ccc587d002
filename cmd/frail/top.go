// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"frail/api"
	"frail/cmd/internal/exit"
)

func newTopCmd(opts *options) *cobra.Command {
	var interval time.Duration
	var times int
	var batch bool
	cmd := &cobra.Command{
		Use:   "top [DOMAIN]",
		Short: "Show the busiest processes of the domains whose call sequences are analysed",
		Long: `Show the busiest processes of the domains whose call sequences are analysed: system
calls a second, the state of their program's profile, and the highest locality frame count
of their threads, now and ever.

On a terminal the table stays in place; q or Ctrl-C ends. Otherwise, or with --batch, one
table comes after another.`,
		Example: `  frail top
  frail top guest1 --interval 5s
  frail top --batch -n 2`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: opts.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval < 100*time.Millisecond {
				return exit.Usagef("--interval of %s: at least 100ms", interval)
			}
			req := &api.ThreadsRequest{}
			if len(args) > 0 {
				req.Domain = args[0]
			}
			return opts.withDaemon(cmd.Context(), func(d *daemon) error {
				t := &top{client: d, req: req, interval: interval, times: times}
				if term, err := openTerminal(cmd.OutOrStdout()); err == nil && !batch {
					return t.interactive(cmd.Context(), term)
				}
				return t.batch(cmd.Context(), cmd.OutOrStdout())
			})
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "`TIME` between two tables")
	cmd.Flags().IntVarP(&times, "times", "n", 0, "end after `N` tables; 0: no limit")
	cmd.Flags().BoolVar(&batch, "batch", false, "one table after another, on a terminal too")
	return cmd
}

// process is a line of the table.
type process struct {
	domain      string
	tgid        int32
	comm        string
	state       string
	threads     int
	calls       uint64 // of threads that were there before too
	rate        float64
	lfc, maxLFC uint32
}

type threadID struct {
	domain string
	pid    int32
	comm   string
}

// top makes tables of what fraild tells.
type top struct {
	client   api.FrailClient
	req      *api.ThreadsRequest
	interval time.Duration
	times    int

	before map[threadID]uint64
	when   int64
}

// update asks fraild and returns the processes, the busiest first.
func (t *top) update(ctx context.Context) ([]process, error) {
	resp, err := t.client.Threads(ctx, t.req)
	if err != nil {
		return nil, err
	}
	now := make(map[threadID]uint64, len(resp.GetThreads()))
	type key struct {
		domain string
		tgid   int32
	}
	all := make(map[key]*process)
	for _, th := range resp.GetThreads() {
		id := threadID{th.GetName(), th.GetPid(), string(th.GetComm())}
		now[id] = th.GetCalls()
		k := key{th.GetName(), th.GetTgid()}
		p := all[k]
		if p == nil {
			p = &process{domain: th.GetName(), tgid: th.GetTgid()}
			all[k] = p
		}
		if p.comm == "" || th.GetPid() == th.GetTgid() {
			p.comm, p.state = string(th.GetComm()), threadState(th)
		}
		p.threads++
		// A program that began meanwhile counts from zero.
		if was := t.before[id]; t.before != nil && was <= th.GetCalls() {
			p.calls += th.GetCalls() - was
		}
		p.lfc, p.maxLFC = max(p.lfc, th.GetLfc()), max(p.maxLFC, th.GetMaxLfc())
	}
	seconds := float64(resp.GetNano()-t.when) / 1e9
	first := t.before == nil
	t.before, t.when = now, resp.GetNano()
	out := make([]process, 0, len(all))
	for _, p := range all {
		if !first && seconds > 0 {
			p.rate = float64(p.calls) / seconds
		}
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b process) int {
		return cmp.Or(cmp.Compare(b.rate, a.rate), cmp.Compare(b.lfc, a.lfc), cmp.Compare(a.domain, b.domain), cmp.Compare(a.tgid, b.tgid))
	})
	return out, nil
}

func threadState(t *api.Thread) string {
	switch {
	case t.GetNormal():
		return "normal"
	case t.GetFrozen():
		return "frozen"
	default:
		return "learning"
	}
}

var topHeader = []string{"Domain", "PID", "Process", "Threads", "Calls/s", "Profile", "LFC", "Max"}

func topRows(ps []process) [][]string {
	rows := make([][]string, 0, len(ps))
	for _, p := range ps {
		rows = append(rows, []string{
			p.domain, strconv.Itoa(int(p.tgid)), p.comm, strconv.Itoa(p.threads),
			strconv.FormatFloat(p.rate, 'f', 0, 64), p.state, strconv.Itoa(int(p.lfc)), strconv.Itoa(int(p.maxLFC)),
		})
	}
	return rows
}

// batch prints tables until ctx is done.
func (t *top) batch(ctx context.Context, w io.Writer) error {
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		ps, err := t.update(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := writeTable(w, topHeader, topRows(ps)); err != nil {
			return err
		}
		if n == t.times {
			return nil
		}
		fmt.Fprintln(w)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// terminal is where a table stays in place.
type terminal struct {
	out *os.File
	old unix.Termios
}

// openTerminal returns an error if w or standard input is no terminal.
func openTerminal(w io.Writer) (*terminal, error) {
	out, ok := w.(*os.File)
	if !ok {
		return nil, os.ErrInvalid
	}
	if _, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS); err != nil {
		return nil, err
	}
	old, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	return &terminal{out: out, old: *old}, nil
}

// size returns how many lines and columns there are.
func (t *terminal) size() (lines, columns int) {
	ws, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Row == 0 || ws.Col == 0 {
		return 24, 80
	}
	return int(ws.Row), int(ws.Col)
}

const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	topOfScreen = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
	reverse     = "\x1b[7m"
	plain       = "\x1b[0m"
)

// interactive keeps a table on the terminal until ctx is done or the user ends it.
func (t *top) interactive(ctx context.Context, term *terminal) error {
	raw := term.old
	raw.Lflag &^= unix.ICANON | unix.ECHO
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	stdin := int(os.Stdin.Fd())
	if err := unix.IoctlSetTermios(stdin, unix.TCSETS, &raw); err != nil {
		return fmt.Errorf("set terminal: %w", err)
	}
	fmt.Fprint(term.out, enterScreen)
	defer func() {
		fmt.Fprint(term.out, leaveScreen)
		// Nothing can be done about a terminal that is gone.
		_ = unix.IoctlSetTermios(stdin, unix.TCSETS, &term.old)
	}()

	keys := make(chan byte)
	go func() {
		var b [1]byte
		for {
			if n, err := os.Stdin.Read(b[:]); n == 0 || err != nil {
				close(keys)
				return
			}
			keys <- b[0]
		}
	}()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)

	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	var ps []process
	for n := 0; ; {
		var err error
		if ps, err = t.update(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		n++
	draw:
		lines, columns := term.size()
		if _, err := term.out.Write(screen(ps, lines, columns)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if n == t.times {
			return nil
		}
		select {
		case <-tick.C:
		case <-resized:
			goto draw
		case key, ok := <-keys:
			if !ok || key == 'q' || key == 'Q' {
				return nil
			}
			goto draw
		case <-ctx.Done():
			return nil
		}
	}
}

// screen returns what draws the table on a terminal of that size.
func screen(ps []process, lines, columns int) []byte {
	shown := ps[:min(len(ps), max(lines-3, 0))]
	var table bytes.Buffer
	if err := writeTable(&table, topHeader, topRows(shown)); err != nil {
		return nil // a buffer takes all
	}
	var rate float64
	for _, p := range ps {
		rate += p.rate
	}
	var out bytes.Buffer
	out.WriteString(topOfScreen)
	put := func(text, before, after string, last bool) {
		r := []rune(text)
		out.WriteString(before + string(r[:min(len(r), columns)]) + clearLine + after)
		if !last {
			out.WriteString("\r\n")
		}
	}
	text := strings.Split(strings.TrimRight(table.String(), "\n"), "\n")
	text = append([]string{fmt.Sprintf("frail top: %d processes, %.0f calls/s (q quits)", len(ps), rate)}, text...)
	text = text[:min(len(text), lines)]
	for i, line := range text {
		before, after := "", ""
		if i == 1 {
			before, after = reverse, plain
		}
		put(line, before, after, i == len(text)-1)
	}
	out.WriteString(clearBelow)
	return out.Bytes()
}
