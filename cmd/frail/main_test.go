// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"libvirt.org/go/libvirt"

	"frail/api"
	"frail/cmd/internal/exit"
	"frail/hooks/libvirttest"
	"frail/packaging"
)

// commandEnv makes the test binary the command frail.
const commandEnv = "FRAIL_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandEnv) != "" {
		main()
	}
	libvirttest.Main(m)
}

// wantStatus runs the command in a process of its own and checks its exit status.
func wantStatus(t *testing.T, want exit.Status, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), commandEnv+"=1")
	out, err := cmd.CombinedOutput()
	if got := exit.Status(cmd.ProcessState.ExitCode()); got != want {
		t.Errorf("frail %q: exit status %d, want %d (%v)\n%s", args, got, want, err, out)
	}
}

// patience is how long a test waits for something that takes well under a second on an
// idle machine.
const patience = 60 * time.Second

// eventually waits for cond, which says what is still wrong.
func eventually(t *testing.T, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for err := cond(); err != nil; err = cond() {
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", patience, err)
		}
		<-tick.C
	}
}

// daemonProcess is a fraild of a test.
type daemonProcess struct {
	cmd     *exec.Cmd
	dir     string
	socket  string
	metrics string        // path of the socket
	log     *bytes.Buffer // to be read after the process ended
	ended   chan error
}

// prepareDaemon makes a process of the program fraild that watches uri, with files of its
// own in dir.
func prepareDaemon(t *testing.T, fraild, dir, uri, statusDir string) *daemonProcess {
	t.Helper()
	p := &daemonProcess{
		dir: dir, socket: filepath.Join(dir, "frail.sock"), metrics: filepath.Join(dir, "metrics.sock"),
		log: new(bytes.Buffer), ended: make(chan error, 1),
	}
	conf := filepath.Join(dir, "frail.toml")
	text := fmt.Sprintf("[libvirt]\nuri = %q\nstatus_dir = %q\n[api]\nsocket = %q\n[hook]\nsocket = %q\n[trace]\nring_bytes = 65536\n[metrics]\nlisten = %q\n[log]\nlevel = \"debug\"\n",
		uri, statusDir, p.socket, filepath.Join(dir, "hook.sock"), "unix:"+p.metrics)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(fraild, "--config", conf)
	p.cmd.Stderr = p.log
	return p
}

// startDaemon runs a prepared fraild until the test ends and waits until it is ready.
func startDaemon(t *testing.T, p *daemonProcess) {
	t.Helper()
	notifyPath := filepath.Join(p.dir, "notify.sock")
	os.Remove(notifyPath)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifyPath, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notifyPath)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.ended <- p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.end(t, unix.SIGTERM)
		if t.Failed() {
			t.Logf("fraild's log:\n%s", p.log)
		}
	})
	if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var buf [4096]byte
	n, err := notify.Read(buf[:])
	if err != nil {
		t.Fatalf("wait for fraild to be ready: %v", err)
	}
	if got := string(buf[:n]); !strings.HasPrefix(got, "READY=1\n") {
		t.Fatalf("fraild notifies %q, not READY=1", got)
	}
}

// end signals the process and waits for it. It returns its exit error.
func (p *daemonProcess) end(t *testing.T, sig unix.Signal) error {
	t.Helper()
	select {
	case err := <-p.ended:
		return err
	default:
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Error(err)
	}
	select {
	case err := <-p.ended:
		return err
	case <-time.After(patience):
		p.cmd.Process.Kill()
		t.Errorf("fraild does not end within %s of %v", patience, sig)
		return <-p.ended
	}
}

// frail runs the command as a user does: what it printed, and its error as shown.
func (p *daemonProcess) frail(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errOut bytes.Buffer
	if err = run(ctx, append([]string{"--socket", p.socket}, args...), &out, &errOut); err != nil {
		err = fmt.Errorf("%s", message(err))
	}
	return out.String(), errOut.String(), err
}

// complete returns what the shell's completion offers for the last of args, and cobra's
// directive.
func (p *daemonProcess) complete(t *testing.T, args ...string) string {
	t.Helper()
	out, _, err := p.frail(t, append([]string{"__completeNoDesc"}, args...)...)
	if err != nil {
		t.Errorf("complete %q: %v", args, err)
	}
	return strings.Join(strings.Fields(out), " ")
}

// wantError fails the test unless err has all of parts.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error is %v, want one with %q", err, part)
		}
	}
}

// lab is a private libvirt with three running domains, connected to.
type lab struct {
	*libvirttest.Daemon
	conn *libvirt.Connect
}

func startLab(t *testing.T) *lab {
	t.Helper()
	t.Setenv("LIBVIRT_DEFAULT_URI", "")
	d := libvirttest.Start(t)
	conn, err := libvirt.NewConnect(d.URI)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &lab{d, conn}
}

// define defines a domain and starts it if asked.
func (l *lab) define(t *testing.T, name, metadata string, start bool) *libvirt.Domain {
	t.Helper()
	dom, err := l.conn.DomainDefineXML(libvirttest.DomainXML(name, metadata))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dom.Free() })
	if start {
		if err := dom.Create(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dom.Destroy() })
	}
	return dom
}

const element = `<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:trace/></frail:frail>`

// noModule is how a domain shows that should be traced on a machine without frail.ko.
const noModule = "error: open /dev/frail: frail.ko is not loaded: modprobe frail"

// states returns the table of frail list as name -> state.
func (p *daemonProcess) states(t *testing.T, args ...string) (map[string]string, error) {
	t.Helper()
	out, _, err := p.frail(t, append([]string{"-q", "list"}, args...)...)
	if err != nil {
		return nil, err
	}
	states := make(map[string]string)
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[2] != "-" {
			return nil, fmt.Errorf("line %q has too few columns, or coverage without frail.ko", line)
		}
		states[fields[1]] = strings.Join(fields[3:], " ")
	}
	return states, nil
}

// wantStates waits until frail list shows these domains, and no others.
func (p *daemonProcess) wantStates(t *testing.T, want map[string]string, args ...string) {
	t.Helper()
	eventually(t, func() error {
		got, err := p.states(t, args...)
		if err != nil {
			return err
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("domains are %v, want %v", got, want)
		}
		return nil
	})
}

// The command and the daemon together, on a machine without frail.ko.
func TestDaemon(t *testing.T) {
	fraild := filepath.Join(t.TempDir(), "fraild")
	if out, err := exec.Command("go", "build", "-tags", "libvirt_dlopen", "-o", fraild, "frail/cmd/fraild").CombinedOutput(); err != nil {
		t.Fatalf("build fraild: %v\n%s", err, out)
	}
	t.Run("domains", func(t *testing.T) { testDomains(t, fraild) })
	t.Run("without libvirt", func(t *testing.T) { testWithoutLibvirt(t, fraild) })
	t.Run("reflection", func(t *testing.T) { testReflection(t, fraild) })
	t.Run("usage", func(t *testing.T) { testUsage(t, fraild) })
}

// Domains of a real libvirt through a real fraild.
func testDomains(t *testing.T, fraild string) {
	l := startLab(t)
	asks := l.define(t, "asks", element, true)
	l.define(t, "bad", `<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:trase/></frail:frail>`, true)
	l.define(t, "plain", "", true)
	l.define(t, "sleeping", element, false)
	p := prepareDaemon(t, fraild, t.TempDir(), l.URI, l.StatusDir)
	startDaemon(t, p)

	const invalid = "error: invalid frail metadata: frail/trase: unknown element"
	p.wantStates(t, map[string]string{"asks": noModule, "bad": invalid, "plain": "not traced (disabled)"})
	p.wantStates(t, map[string]string{"asks": noModule, "bad": invalid, "plain": "not traced (disabled)", "sleeping": "shut off"}, "--all")

	t.Run("table", func(t *testing.T) {
		out, _, err := p.frail(t, "list", "--all")
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(out, "\n")
		if want := " Id   Name       Coverage   State"; lines[0] != want {
			t.Errorf("header is %q, want %q", lines[0], want)
		}
		if strings.Trim(lines[1], "-") != "" || lines[1] == "" {
			t.Errorf("second line is %q", lines[1])
		}
		if want := " -    sleeping   -          shut off"; lines[5] != want {
			t.Errorf("last line is %q, want %q", lines[5], want)
		}
	})

	t.Run("json", func(t *testing.T) {
		out, _, err := p.frail(t, "list", "--json")
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			URI     string
			Domains []struct {
				UUID, Name, State, Reason string
				ID, PID                   int
				Active, Enabled           bool
				VM                        *struct{}
			}
		}
		if err := json.Unmarshal([]byte(out), &doc); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		if doc.URI != l.URI || len(doc.Domains) != 3 {
			t.Fatalf("document is %+v", doc)
		}
		uuid, err := asks.GetUUIDString()
		if err != nil {
			t.Fatal(err)
		}
		d := doc.Domains[0]
		if d.UUID != uuid || d.Name != "asks" || d.State != "STATE_ERROR" || "error: "+d.Reason != noModule ||
			d.ID == 0 || d.PID == 0 || !d.Active || !d.Enabled || d.VM != nil {
			t.Errorf("first domain is %+v", d)
		}
	})

	t.Run("a capture that is refused leaves the file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "guest.cap")
		if err := os.WriteFile(path, []byte("an older one"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := p.frail(t, "capture", "asks", "-o", path)
		wantError(t, err, "domain 'asks' is not traced")
		if text, err := os.ReadFile(path); err != nil || string(text) != "an older one" {
			t.Errorf("the file has %q, error %v", text, err)
		}
	})

	t.Run("enable and disable a running domain", func(t *testing.T) {
		out, _, err := p.frail(t, "-c", l.URI, "enable", "plain", "--live")
		if err != nil || out != "Domain 'plain' enabled for tracing\n" {
			t.Fatalf("enable prints %q, error %v", out, err)
		}
		p.wantStates(t, map[string]string{"asks": noModule, "bad": invalid, "plain": noModule})
		if _, _, err := p.frail(t, "-c", l.URI, "disable", "plain"); err != nil {
			t.Fatal(err)
		}
		p.wantStates(t, map[string]string{"asks": noModule, "bad": invalid, "plain": "not traced (disabled)"})
	})

	t.Run("exits", func(t *testing.T) {
		const exits = "<trace exits='entry'/>"
		dom, err := l.conn.LookupDomainByName("sleeping")
		if err != nil {
			t.Fatal(err)
		}
		defer dom.Free()
		for _, tc := range []struct {
			args []string
			has  bool
		}{
			{[]string{"--exits", "entry"}, true},
			{nil, true},
			{[]string{"--exits", "both"}, false},
		} {
			if _, _, err := p.frail(t, append([]string{"-c", l.URI, "enable", "sleeping"}, tc.args...)...); err != nil {
				t.Fatal(err)
			}
			element, err := dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, "urn:frail:domain:1.0", libvirt.DOMAIN_AFFECT_CONFIG)
			if err != nil || strings.Contains(strings.ReplaceAll(element, `"`, "'"), exits) != tc.has {
				t.Errorf("after enable %q the element is %s, error %v", tc.args, element, err)
			}
		}
		_, _, err = p.frail(t, "-c", l.URI, "enable", "sleeping", "--exits", "none")
		wantError(t, err, `--exits: unknown value "none": use "both" or "entry"`)
	})

	t.Run("domain by id and UUID", func(t *testing.T) {
		id, err := asks.GetID()
		if err != nil {
			t.Fatal(err)
		}
		uuid, err := asks.GetUUIDString()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{fmt.Sprint(id), uuid} {
			if out, _, err := p.frail(t, "-c", l.URI, "enable", key); err != nil || out != "Domain 'asks' enabled for tracing\n" {
				t.Errorf("enable %s prints %q, error %v", key, out, err)
			}
			// The daemon finds it as well: the error is the domain's own.
			_, _, err := p.frail(t, "trace", key)
			wantError(t, err, "domain 'asks' is not traced: open /dev/frail: frail.ko is not loaded")
		}
	})

	t.Run("configuration of a domain that is shut off", func(t *testing.T) {
		dom, err := l.conn.LookupDomainByName("sleeping")
		if err != nil {
			t.Fatal(err)
		}
		defer dom.Free()
		_, _, err = p.frail(t, "-c", l.URI, "disable", "sleeping", "--live")
		wantError(t, err, "domain is not running")
		if _, _, err := p.frail(t, "-c", l.URI, "disable", "sleeping", "--config"); err != nil {
			t.Fatal(err)
		}
		if err := dom.Create(); err != nil {
			t.Fatal(err)
		}
		defer dom.Destroy()
		p.wantStates(t, map[string]string{"asks": noModule, "bad": invalid, "plain": "not traced (disabled)", "sleeping": "not traced (disabled)"})
	})

	t.Run("errors of domain arguments", func(t *testing.T) {
		_, _, err := p.frail(t, "-c", l.URI, "enable", "nobody")
		wantError(t, err, "failed to get domain 'nobody': Domain not found")
		_, _, err = p.frail(t, "-c", l.URI, "enable")
		wantError(t, err, "command 'enable' requires DOMAIN")
		_, _, err = p.frail(t, "-c", l.URI, "enable", "a", "b")
		wantError(t, err, "unexpected data 'b'")
		_, _, err = p.frail(t, "-c", l.URI, "enable", "plain", "--current", "--live")
		wantError(t, err, "current", "live")
		_, _, err = p.frail(t, "-c", "qemu+unix:///system?socket=/nonexistent", "enable", "plain")
		wantError(t, err, "failed to connect to the hypervisor")
	})

	t.Run("trace that cannot be", func(t *testing.T) {
		_, _, err := p.frail(t, "trace", "nobody")
		wantError(t, err, "failed to get domain 'nobody'")
		_, _, err = p.frail(t, "trace", "plain")
		wantError(t, err, "domain 'plain' is not traced: frail enable it")
		_, _, err = p.frail(t, "trace", "plain", "--filter-syscall", "opnat")
		wantError(t, err, "opnat", "open")
		_, _, err = p.frail(t, "trace", "plain", "--wait", "--filter-comm", "a-name-that-is-too-long")
		wantError(t, err, "first 15 bytes")
		// BPF programs load here; there is nothing to attach them to.
		_, _, err = p.frail(t, "trace", "plain", "--wait")
		wantError(t, err, "cannot trace: load frail.ko", "guest_sys_")
	})

	t.Run("exit statuses", func(t *testing.T) {
		for _, tc := range []struct {
			want exit.Status
			args []string
		}{
			{exit.Success, []string{"list"}},
			{exit.NotFound, []string{"trace", "nobody"}},
			{exit.NotFound, []string{"ps", "nobody"}},
			{exit.NotFound, []string{"profile", "show", "nobody/sh"}},
			{exit.NotFound, []string{"-c", l.URI, "enable", "nobody"}},
			{exit.WrongState, []string{"trace", "plain"}},
			{exit.WrongState, []string{"ps", "sleeping"}},
			{exit.WrongState, []string{"-c", l.URI, "enable", "sleeping", "--live"}},
			{exit.Usage, []string{"trace", "plain", "--filter-syscall", "opnat"}},
		} {
			wantStatus(t, tc.want, append([]string{"--socket", p.socket}, tc.args...)...)
		}
	})

	t.Run("completion", func(t *testing.T) {
		for _, tc := range []struct {
			args []string
			want string // without descriptions
		}{
			{[]string{"trace", ""}, "asks bad plain sleeping :4"},
			{[]string{"trace", "pl"}, "asks bad plain sleeping :4"}, // the shell chooses
			{[]string{"trace", "plain", ""}, ":4"},
			{[]string{"ps", "--qmp", "/x", ""}, ":4"},
			{[]string{"alerts", ""}, "asks bad plain sleeping :4"},
			{[]string{"domstats", "plain", ""}, "asks bad sleeping :4"},
			{[]string{"profile", "import", "./f", ""}, "asks bad plain sleeping :4"},
			{[]string{"profile", "show", ""}, ":4"}, // nothing is learnt
			{[]string{"profile", "show", "./"}, ":0"},
		} {
			if got := p.complete(t, tc.args...); got != tc.want {
				t.Errorf("%q is completed by %q, want %q", tc.args, got, tc.want)
			}
		}
		if out, _, _ := p.frail(t, "__complete", "list", "--all", "trace", ""); strings.Contains(out, "asks") {
			t.Errorf("a command without arguments is completed by\n%s", out)
		}
		out, _, _ := p.frail(t, "__complete", "enable", "pla")
		if want := "plain\tnot traced (disabled)\n"; !strings.Contains(out, want) {
			t.Errorf("with descriptions: %q, want a line %q", out, want)
		}
	})

	t.Run("completion in bash", func(t *testing.T) {
		const library = "/usr/share/bash-completion/bash_completion"
		if _, err := os.Stat(library); err != nil {
			t.Skip("bash-completion is not installed: ", err)
		}
		dir := t.TempDir()
		self, err := os.Executable()
		if err == nil {
			err = os.Symlink(self, filepath.Join(dir, "frail"))
		}
		if err != nil {
			t.Fatal(err)
		}
		for line, want := range map[string]string{
			"frail --socket " + p.socket + " trace ": "asks bad plain sleeping",
			"frail --socket " + p.socket + " ps sl":  "sleeping",
			"frail enable plain --exits e":           "entry",
			"frail --socket /nonexistent trace ":     "",
		} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			bash := exec.CommandContext(ctx, "bash", "--norc", "-c", `. "$1"; . <(frail completion bash)
				COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9 COMP_WORDS=($2); [[ $2 != *" " ]] || COMP_WORDS+=("")
				COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); compopt() { :; }; __start_frail; echo ${COMPREPLY[@]%% *}`, "bash", library, line)
			bash.Env = append(os.Environ(), commandEnv+"=1", "PATH="+dir+":"+os.Getenv("PATH"))
			out, err := bash.CombinedOutput()
			cancel()
			if got := strings.TrimSpace(string(out)); err != nil || got != want {
				t.Errorf("%q is completed by %q, want %q, error %v", line, got, want, err)
			}
		}
	})

	t.Run("another libvirt than fraild's", func(t *testing.T) {
		_, _, err := p.frail(t, "-c", "qemu:///session", "list")
		wantError(t, err, "fraild watches "+l.URI+", not qemu:///session")
		t.Setenv("LIBVIRT_DEFAULT_URI", "test:///default")
		_, _, err = p.frail(t, "trace", "plain")
		wantError(t, err, "not test:///default")
	})

	t.Run("metrics", func(t *testing.T) {
		p.wantStates(t, map[string]string{"asks": noModule, "bad": invalid, "plain": "not traced (disabled)", "sleeping": "shut off"}, "--all")
		testMetrics(t, p, asks)
	})

	t.Run("doctor", func(t *testing.T) {
		out, _, err := p.frail(t, "-c", l.URI, "doctor")
		if err == nil {
			t.Error("doctor finds no fault on a machine without frail.ko")
		}
		for _, want := range []string{
			"PASS  fraild ", "PASS  fraild: libvirt", "FAIL  frail.ko", "FAIL  fraild: BPF", "fix: modprobe frail", "PASS  fraild: QEMU processes", "PASS  libvirt ",
			"PASS  fraild's socket", "FAIL  domains ", "asks: it is of type qemu", "bad: invalid frail metadata",
			"FAIL  fraild: domains", "asks: open /dev/frail", "PASS  kernel BTF",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("doctor does not print %q:\n%s", want, out)
			}
		}
	})

	t.Run("domain that is undefined", func(t *testing.T) {
		dom, err := l.conn.LookupDomainByName("bad")
		if err != nil {
			t.Fatal(err)
		}
		defer dom.Free()
		if err := dom.Destroy(); err != nil {
			t.Fatal(err)
		}
		p.wantStates(t, map[string]string{"asks": noModule, "bad": "shut off (" + invalid + ")", "plain": "not traced (disabled)", "sleeping": "shut off"}, "--all")
		if err := dom.Undefine(); err != nil {
			t.Fatal(err)
		}
		p.wantStates(t, map[string]string{"asks": noModule, "plain": "not traced (disabled)", "sleeping": "shut off"}, "--all")
	})

	t.Run("fraild killed and started again", func(t *testing.T) {
		p.end(t, unix.SIGKILL)
		_, _, err := p.frail(t, "list")
		wantError(t, err, "fraild does not run", "systemctl start fraild")
		again := prepareDaemon(t, fraild, p.dir, l.URI, l.StatusDir)
		startDaemon(t, again)
		again.wantStates(t, map[string]string{"asks": noModule, "plain": "not traced (disabled)"})
		if !strings.Contains(p.log.String(), "domain=bad") || !strings.Contains(p.log.String(), "frail/trase: unknown element") {
			t.Error("the log does not tell of the bad metadata")
		}
	})
}

// fraild without a libvirt is ready, says so, and ends in order.
func testWithoutLibvirt(t *testing.T, fraild string) {
	t.Setenv("LIBVIRT_DEFAULT_URI", "")
	dir := t.TempDir()
	const uri = "qemu+unix:///system?socket=/nonexistent"
	p := prepareDaemon(t, fraild, dir, uri, filepath.Join(dir, "status"))
	// The hook's socket cannot be opened either, which is no error in the end.
	if err := os.MkdirAll(filepath.Join(dir, "hook.sock", "taken"), 0o755); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, p)

	_, _, err := p.frail(t, "list")
	wantError(t, err, "fraild cannot reach libvirt at "+uri)

	info, err := os.Stat(p.socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o660 {
		t.Errorf("the socket's mode is %04o", info.Mode().Perm())
	}

	out, _, err := p.frail(t, "version")
	if err != nil || !strings.HasPrefix(out, "frail ") || !strings.Contains(out, "\nfraild ") {
		t.Errorf("version prints %q, error %v", out, err)
	}

	out, _, err = p.frail(t, "-c", uri, "doctor", "--json")
	if err == nil {
		t.Error("doctor finds no fault without libvirt")
	}
	var doc struct {
		Checks []struct {
			Name, Detail, Fix string
			Ok                bool
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	failed := make(map[string]bool)
	for _, c := range doc.Checks {
		failed[c.Name] = !c.Ok
		if !c.Ok && c.Fix == "" {
			t.Errorf("no fix for %q: %s", c.Name, c.Detail)
		}
	}
	for _, name := range []string{"libvirt", "fraild: libvirt"} {
		if !failed[name] {
			t.Errorf("check %q does not fail", name)
		}
	}

	second := prepareDaemon(t, fraild, dir, uri, filepath.Join(dir, "status"))
	if err := second.cmd.Run(); err == nil || !strings.Contains(second.log.String(), "another fraild serves") {
		t.Errorf("a second fraild ends with %v: %s", err, second.log)
	}

	if err := p.end(t, unix.SIGTERM); err != nil || !strings.Contains(p.log.String(), "cannot listen to libvirt's qemu hook") {
		t.Errorf("fraild ends with %v, having logged %s", err, p.log)
	}
}

// The server describes its own interface.
func testReflection(t *testing.T, fraild string) {
	dir := t.TempDir()
	p := prepareDaemon(t, fraild, dir, "qemu+unix:///system?socket=/nonexistent", dir)
	startDaemon(t, p)
	conn, err := grpc.NewClient("unix://"+p.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{
		MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
	}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range resp.GetListServicesResponse().GetService() {
		if s.GetName() == "frail.v1.Frail" {
			return
		}
	}
	t.Errorf("services are %v", resp)
}

// fraild's command line, as its manual page has it, and the statuses with which it ends.
func testUsage(t *testing.T, fraild string) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "frail.toml")
	if err := os.WriteFile(bad, []byte("[log]\nlevle = \"info\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	occupied := filepath.Join(dir, "occupied.toml")
	socket := filepath.Join(dir, "frail.sock")
	if err := os.WriteFile(occupied, fmt.Appendf(nil, "[api]\nsocket = %q\n", socket), 0o600); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(socket + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		status exit.Status
		want   string
		args   []string
	}{
		{exit.Success, "fraild ", []string{"--version"}},
		{exit.Success, "-config", []string{"--help"}},
		{exit.Failure, "another fraild serves", []string{"--config", occupied}},
		{exit.Usage, "-nosuch", []string{"--nosuch"}},
		{exit.Usage, `unexpected argument "x"`, []string{"x"}},
		{exit.Usage, "none: no such file", []string{"--config", filepath.Join(dir, "none")}},
		{exit.Usage, bad + ":2: log.levle: unknown key", []string{"--config", bad}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := exec.CommandContext(ctx, fraild, tc.args...)
		out, _ := cmd.CombinedOutput()
		cancel()
		if got := exit.Status(cmd.ProcessState.ExitCode()); got != tc.status || !strings.Contains(string(out), tc.want) {
			t.Errorf("fraild %q: exit status %d, want %d, with %q:\n%s", tc.args, got, tc.status, tc.want, out)
		}
		for _, m := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(string(out), -1) {
			if !strings.Contains(packaging.Fraild, "**--"+m[1]+"**") {
				t.Errorf("fraild(8) does not tell of --%s", m[1])
			}
		}
	}
}

// What a user reads of which calls are seen.
func TestCoverageText(t *testing.T) {
	syscall, int80, sysenter := api.Entry_ENTRY_SYSCALL, api.Entry_ENTRY_INT80, api.Entry_ENTRY_SYSENTER
	for _, tc := range []struct {
		vm   *api.VM
		want string
	}{
		{nil, "-"},
		{&api.VM{}, "-"}, // no vCPU is armed yet
		{&api.VM{Covered: []api.Entry{syscall, int80, sysenter}}, "full"},
		{&api.VM{Covered: []api.Entry{syscall, sysenter}, Blind: []api.Entry{int80}}, "not seen: int80"},
		{&api.VM{Covered: []api.Entry{syscall}, Blind: []api.Entry{int80, sysenter}}, "not seen: int80, sysenter"},
	} {
		if got := coverageText(tc.vm); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.vm, got, tc.want)
		}
	}
}

// Without a daemon the error says what to do.
func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	p := &daemonProcess{socket: filepath.Join(dir, "frail.sock")}
	for _, args := range [][]string{{"list"}, {"trace", "x"}} {
		_, _, err := p.frail(t, args...)
		wantError(t, err, "fraild does not run", "systemctl start fraild")
	}
	out, _, err := p.frail(t, "version")
	if err != nil || !strings.HasPrefix(out, "frail ") {
		t.Errorf("version prints %q, error %v", out, err)
	}
	_, _, err = p.frail(t, "lst")
	wantError(t, err, `unknown command "lst"`)
	_, _, err = p.frail(t, "list", "--al")
	wantError(t, err, "unknown flag: --al")
	out, _, err = p.frail(t, "trace", "--help")
	if err != nil || !strings.Contains(out, "--filter-syscall LIST") {
		t.Errorf("help prints %q, error %v", out, err)
	}
}
