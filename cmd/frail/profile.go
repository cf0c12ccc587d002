// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"frail/api"
	"frail/cmd/internal/exit"
	"frail/tracer/ph"
	"frail/tracer/profile"
)

// readProfileFile reads a profile from a file.
func readProfileFile(path string) (*profile.File, error) {
	f, err := profile.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read profile %s: %w", path, err)
	}
	return f, nil
}

// withDaemon calls f with a connection to the fraild of the right libvirt connection.
func (o *options) withDaemon(ctx context.Context, f func(*daemon) error) error {
	client, err := dialDaemon(o.socket)
	if err != nil {
		return err
	}
	defer client.Close()
	st, err := client.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return err
	}
	if err := o.checkURI(st.GetUri()); err != nil {
		return err
	}
	return f(client)
}

func newProfileCmd(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Show and change what is learnt of guests' programs",
		Long: `Show and change what is learnt of guests' programs.

A profile is what an executable of a domain was seen to do: which system call came after
which. PROFILE is DOMAIN and the executable's path, or the path of a file that "frail profile
export" wrote, which has a dot or a slash at its beginning. Of a path that is too long the end
is known: DOMAIN/...END. Where the guest's layout leads to no path, a thread's name stands for
it: DOMAIN/[NAME]. What is not plain text is written as in Go, with \x escapes.

States:
  learning  everything is new
  frozen    nothing new came for long; it becomes normal at the time shown
  normal    calls that do not fit are anomalous`,
		Example: `  frail profile list
  frail profile show guest1/usr/sbin/nginx
  frail profile export guest1/usr/sbin/nginx ./nginx.profile`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newProfileListCmd(opts), newProfileShowCmd(opts), newProfileDiffCmd(opts), newProfileExportCmd(opts),
		newProfileImportCmd(opts), newProfileMergeCmd(opts), newProfileSeccompCmd(opts),
		newProfileChangeCmd(opts, "normalize", api.ProfileChange_PROFILE_CHANGE_NORMALIZE,
			"Judge by all that was learnt, from now on"),
		newProfileChangeCmd(opts, "tolerize", api.ProfileChange_PROFILE_CHANGE_TOLERIZE,
			"Stop to judge: what the program does is learnt until it is normal again"),
		newProfileChangeCmd(opts, "sensitize", api.ProfileChange_PROFILE_CHANGE_SENSITIZE,
			"Forget what was learnt and is not judged by"),
		newProfileChangeCmd(opts, "delete", api.ProfileChange_PROFILE_CHANGE_DELETE, "Forget the profile"),
	)
	return cmd
}

// splitProfile returns the domain and the executable of DOMAIN/EXECUTABLE: the slash is the
// path's first, unless there is none.
func splitProfile(arg string) (string, []byte, error) {
	domain, name, ok := strings.Cut(arg, "/")
	if !ok || domain == "" {
		return "", nil, exit.Usagef("profile %q: want DOMAIN/EXECUTABLE", arg)
	}
	exe, err := strconv.Unquote(`"` + strings.ReplaceAll(name, `"`, `\"`) + `"`)
	if err != nil {
		return "", nil, exit.Usagef("profile %q: the executable has an escape that is none", arg)
	}
	if !strings.HasPrefix(exe, "/") && !strings.HasPrefix(exe, "[") && !strings.HasPrefix(exe, "...") {
		exe = "/" + exe
	}
	return domain, []byte(exe), nil
}

// isFile reports whether a PROFILE is a path.
func isFile(arg string) bool { return strings.HasPrefix(arg, ".") || strings.HasPrefix(arg, "/") }

// getProfile returns a PROFILE and its file's content.
func (o *options) getProfile(ctx context.Context, arg string) (*profile.File, []byte, error) {
	if isFile(arg) {
		f, err := readProfileFile(arg)
		if err != nil {
			return nil, nil, err
		}
		text, err := profile.Encode(f)
		return f, text, err
	}
	domain, exe, err := splitProfile(arg)
	if err != nil {
		return nil, nil, err
	}
	var text []byte
	err = o.withDaemon(ctx, func(d *daemon) error {
		resp, err := d.GetProfile(ctx, &api.ProfileName{Domain: domain, Executable: exe})
		text = resp.GetFile()
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	f, err := profile.Decode(bytes.NewReader(text))
	return f, text, err
}

func newProfileListCmd(opts *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list [DOMAIN]",
		Short: "List the profiles of the domains that are analysed",
		Long: `List the profiles of the domains that are analysed: of each executable its state, how many
calls it made, how many since something new was learnt, how many different ones, how many
anomalous ones, and the threads that ran it. Below it are the limits that were reached.`,
		Example: `  frail profile list
  frail profile list guest1 --json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: opts.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &api.ProfilesRequest{}
			if len(args) > 0 {
				req.Domain = args[0]
			}
			return opts.withDaemon(cmd.Context(), func(d *daemon) error {
				resp, err := d.Profiles(cmd.Context(), req)
				if err != nil {
					return err
				}
				if asJSON {
					return writeProfilesJSON(cmd.OutOrStdout(), resp)
				}
				var rows [][]string
				for _, p := range resp.GetProfiles() {
					rows = append(rows, []string{
						p.GetName(), string(p.GetExecutable()), profileState(p), strconv.FormatUint(p.GetTrain(), 10),
						strconv.FormatUint(p.GetLastMod(), 10), strconv.Itoa(int(p.GetCalls())),
						strconv.FormatUint(p.GetAnomalies(), 10), strconv.FormatUint(p.GetThreads(), 10),
					})
				}
				header := []string{"Domain", "Executable", "State", "Calls", "Since new", "Kinds", "Anomalies", "Threads"}
				if opts.quiet {
					header = nil
				}
				if err := writeTable(cmd.OutOrStdout(), header, rows); err != nil {
					return err
				}
				if !opts.quiet {
					warnLimits(cmd.ErrOrStderr(), resp.GetCounters())
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document")
	return cmd
}

// warnLimits says what the analysis left out.
func warnLimits(w io.Writer, counters map[string]uint64) {
	for limit := range len(counters) {
		name := ph.LimitName(limit)
		if n := counters[name]; n > 0 {
			fmt.Fprintf(w, "%s: %d\n", name, n)
		}
	}
}

func profileState(p *api.Profile) string {
	switch {
	case p.GetNormal() && p.GetFrozen():
		return "normal, frozen until " + time.Unix(0, p.GetNormalUnixNano()).Format(time.DateTime)
	case p.GetNormal():
		return "normal"
	case p.GetFrozen():
		return "frozen until " + time.Unix(0, p.GetNormalUnixNano()).Format(time.DateTime)
	default:
		return "learning"
	}
}

func writeProfilesJSON(w io.Writer, resp *api.ProfilesResponse) error {
	type item struct {
		Domain     string `json:"domain"`
		UUID       string `json:"uuid"`
		Executable string `json:"executable"`
		Normal     bool   `json:"normal"`
		Frozen     bool   `json:"frozen"`
		NormalAt   string `json:"normal_at,omitempty"`
		Train      uint64 `json:"train"`
		LastMod    uint64 `json:"last_mod"`
		Sequences  uint64 `json:"sequences"`
		Anomalies  uint64 `json:"anomalies"`
		Calls      uint32 `json:"calls"`
		Threads    uint64 `json:"threads"`
	}
	doc := struct {
		Profiles []item            `json:"profiles"`
		Counters map[string]uint64 `json:"counters"`
	}{Profiles: []item{}, Counters: resp.GetCounters()}
	for _, p := range resp.GetProfiles() {
		i := item{
			p.GetName(), p.GetUuid(), printable(string(p.GetExecutable())), p.GetNormal(), p.GetFrozen(), "", p.GetTrain(),
			p.GetLastMod(), p.GetSequences(), p.GetAnomalies(), p.GetCalls(), p.GetThreads(),
		}
		if p.GetFrozen() {
			i.NormalAt = time.Unix(0, p.GetNormalUnixNano()).UTC().Format(time.RFC3339)
		}
		doc.Profiles = append(doc.Profiles, i)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(&doc)
}

func newProfileShowCmd(opts *options) *cobra.Command {
	var plot string
	cmd := &cobra.Command{
		Use:   "show PROFILE",
		Short: "Show a profile: its pairs of calls and their distances",
		Long: `Show a profile: what is known of the executable, then its pairs of calls. Each line is a
call, one that came before it, and at which distances: as learnt, and as judged by.`,
		Example: `  frail profile show guest1/usr/sbin/nginx
  frail profile show ./nginx.profile --plot nginx.svg`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: opts.completeProfiles(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, _, err := opts.getProfile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if plot != "" {
				var svg bytes.Buffer
				if err := profile.Plot(&svg, &f.Profile); err != nil {
					return err
				}
				if err := os.WriteFile(plot, svg.Bytes(), 0o644); err != nil {
					return fmt.Errorf("write plot: %w", err)
				}
				return nil
			}
			return showProfile(cmd.OutOrStdout(), f)
		},
	}
	cmd.Flags().StringVar(&plot, "plot", "", "draw the lookahead matrix into `FILE`, as SVG, instead")
	return cmd
}

func showProfile(w io.Writer, f *profile.File) error {
	train, test := f.Count()
	fmt.Fprintf(w, "executable=%s\nsaved=%s\nnormal=%t\nfrozen=%t\n", printable(f.Name), f.Saved.UTC().Format(time.RFC3339), f.Normal, f.Frozen)
	if f.Frozen {
		fmt.Fprintf(w, "normal_at=%s\n", f.NormalAt.UTC().Format(time.RFC3339))
	}
	fmt.Fprintf(w, "calls=%d\nsince_new=%d\nanomalies=%d\nkinds=%d\npairs=%d\npairs_judged_by=%d\n\n",
		f.Train, f.LastMod, f.Anomalies, len(f.Rows), train, test)
	var rows [][]string
	for _, r := range f.Rows {
		for _, p := range r.Pairs {
			rows = append(rows, []string{r.Call.String(), p.Prev.String(), distances(p.Train), distances(p.Test)})
		}
	}
	return writeTable(w, []string{"Call", "After", "Learnt at", "Judged by"}, rows)
}

func distances(bits uint8) string {
	if bits == 0 {
		return "-"
	}
	return strings.Trim(fmt.Sprint(ph.Distances(bits)), "[]")
}

func newProfileDiffCmd(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "diff PROFILE PROFILE",
		Short: "Show the pairs that only one of two profiles has learnt",
		Long: `Show the pairs that only one of two profiles has learnt, with the distances that only the
first has and those that only the second has.`,
		Example:           `  frail profile diff guest1/usr/sbin/nginx ./nginx.profile`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: opts.completeProfiles(2, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, _, err := opts.getProfile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			b, _, err := opts.getProfile(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			var rows [][]string
			for _, d := range profile.Diff(&a.Profile, &b.Profile) {
				rows = append(rows, []string{d.Call.String(), d.Prev.String(), distances(d.First), distances(d.Second)})
			}
			return writeTable(cmd.OutOrStdout(), []string{"Call", "After", "Only the first", "Only the second"}, rows)
		},
	}
}

func newProfileExportCmd(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "export PROFILE FILE",
		Short: "Write a profile to a file, for another host or domain",
		Long:  `Write a profile to a file, for another host or domain. The file - is standard output.`,
		Example: `  frail profile export guest1/usr/sbin/nginx ./nginx.profile
  frail profile export guest1/usr/sbin/nginx - | sha256sum`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: opts.completeProfiles(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, text, err := opts.getProfile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if args[1] == "-" {
				_, err = cmd.OutOrStdout().Write(text)
			} else {
				err = profile.WriteFile(args[1], text)
			}
			if err != nil {
				return fmt.Errorf("write profile: %w", err)
			}
			return nil
		},
	}
}

func newProfileImportCmd(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE DOMAIN[/EXECUTABLE]",
		Short: "Give a domain's executable the profile of a file, in place of what is learnt",
		Long: `Give a domain's executable the profile of a file, in place of what is learnt. Without
EXECUTABLE it is the one that the file is of.`,
		Example: `  frail profile import ./nginx.profile guest2
  frail profile import ./nginx.profile guest2/opt/nginx/nginx`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: opts.completeImport,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := readProfileFile(args[0])
			if err != nil {
				return err
			}
			return opts.putProfile(cmd.Context(), f, args[1])
		},
	}
}

// putProfile gives DOMAIN or DOMAIN/EXECUTABLE a profile.
func (o *options) putProfile(ctx context.Context, f *profile.File, to string) error {
	text, err := profile.Encode(f)
	if err != nil {
		return err
	}
	req := &api.PutProfileRequest{Domain: to, File: text}
	if strings.Contains(to, "/") {
		if req.Domain, req.Executable, err = splitProfile(to); err != nil {
			return err
		}
	}
	return o.withDaemon(ctx, func(d *daemon) error {
		_, err := d.PutProfile(ctx, req)
		return err
	})
}

func newProfileMergeCmd(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "merge PROFILE PROFILE... TO",
		Short: "Join profiles into one, a file or DOMAIN/EXECUTABLE",
		Long: `Join profiles into one that has learnt what any of them has. TO is where it goes: a file,
or DOMAIN/EXECUTABLE in place of what is learnt there.`,
		Example: `  frail profile merge guest1/usr/sbin/nginx guest2/usr/sbin/nginx ./nginx.profile
  frail profile merge ./monday.profile ./tuesday.profile guest1/usr/sbin/nginx`,
		Args:              cobra.MinimumNArgs(3),
		ValidArgsFunction: opts.completeProfiles(math.MaxInt, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			var all *profile.File
			last := len(args) - 1
			for _, arg := range args[:last] {
				f, _, err := opts.getProfile(cmd.Context(), arg)
				if err != nil {
					return err
				}
				if all == nil {
					all = f
				} else {
					all = profile.Merge(all, f)
				}
			}
			if !isFile(args[last]) {
				return opts.putProfile(cmd.Context(), all, args[last])
			}
			text, err := profile.Encode(all)
			if err == nil {
				err = profile.WriteFile(args[last], text)
			}
			if err != nil {
				return fmt.Errorf("write profile: %w", err)
			}
			return nil
		},
	}
}

func newProfileSeccompCmd(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "seccomp PROFILE",
		Short: "Print an OCI seccomp profile of the system calls the program was seen to use",
		Long: `Print an OCI seccomp profile of the system calls the program was seen to use: those are
allowed, all others fail.`,
		Example:           `  frail profile seccomp guest1/usr/sbin/nginx >nginx.json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: opts.completeProfiles(1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, _, err := opts.getProfile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return profile.Seccomp(cmd.OutOrStdout(), &f.Profile)
		},
	}
}

func newProfileChangeCmd(opts *options, name string, change api.ProfileChange, short string) *cobra.Command {
	return &cobra.Command{
		Use:   name + " DOMAIN/EXECUTABLE",
		Short: short,
		Long: short + `. The change is kept, and is in effect when
the command ends. An executable whose name is not plain text is written as in Go, with \x
escapes.`,
		Example:           "  frail profile " + name + " guest1/usr/sbin/nginx",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: opts.completeProfiles(1, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if isFile(args[0]) {
				return exit.Usagef("a file is not changed: import it, then change the domain's profile")
			}
			domain, exe, err := splitProfile(args[0])
			if err != nil {
				return err
			}
			return opts.withDaemon(cmd.Context(), func(d *daemon) error {
				_, err := d.ChangeProfile(cmd.Context(), &api.ChangeProfileRequest{
					Profile: &api.ProfileName{Domain: domain, Executable: exe}, Change: change,
				})
				return err
			})
		},
	}
}
