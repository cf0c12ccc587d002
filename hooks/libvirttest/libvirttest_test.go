// SPDX-License-Identifier: Apache-2.0

package libvirttest

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// victimEnv makes the test binary the victim of TestNothingIsLeftBehind.
const victimEnv = "FRAIL_LIBVIRTTEST_VICTIM"

func TestMain(m *testing.M) { Main(m) }

// virsh runs virsh on d.
func virsh(t *testing.T, d *Daemon, args ...string) {
	t.Helper()
	cmd := exec.Command("virsh", append([]string{"-q", "-c", d.URI}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("virsh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestVictim is the part of TestNothingIsLeftBehind that is killed.
func TestVictim(t *testing.T) {
	if os.Getenv(victimEnv) == "" {
		t.Skip("runs only as a part of TestNothingIsLeftBehind")
	}
	d := Start(t)
	file := filepath.Join(t.TempDir(), "vm.xml")
	if err := os.WriteFile(file, []byte(DomainXML("victim", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	virsh(t, d, "create", file)
	pid, err := os.ReadFile(filepath.Join(d.StatusDir, "victim.pid"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("victim %s %s\n", d.Dir, strings.TrimSpace(string(pid)))
	select {} // until it is killed
}

func TestNothingIsLeftBehind(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir, pidText string
	for in := bufio.NewScanner(out); in.Scan(); {
		if rest, ok := strings.CutPrefix(in.Text(), "victim "); ok {
			dir, pidText, _ = strings.Cut(rest, " ")
			break
		}
		t.Log(in.Text())
	}
	pid, err := strconv.Atoi(pidText)
	if err != nil {
		cmd.Process.Kill()
		t.Fatalf("the victim did not start its domain: %v, %v", err, cmd.Wait())
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)

	// The supervisor's only hint is the end of its input.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 30_000)
	if n != 1 {
		t.Fatalf("the emulator outlives the test: %v", err)
	}
	deadline := time.After(30 * time.Second)
	for poll := time.NewTicker(10 * time.Millisecond); ; {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return
		}
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("%s is left behind", dir)
		}
	}
}
