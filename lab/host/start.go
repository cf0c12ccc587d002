// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// quitGrace is how long an emulator has to go after it was asked to.
const quitGrace = 10 * time.Second

// start starts an emulator and returns a channel that gets what its Wait
// returns. It is asked to go when its context ends, and does not outlive this
// process.
func start(cmd *exec.Cmd) (<-chan error, error) {
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = quitGrace
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig, cmd.SysProcAttr.Setpgid = syscall.SIGKILL, true
	exited := make(chan error, 1)
	ready := make(chan error, 1)
	go func() {
		// Pdeathsig follows the thread that forked.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		ready <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("start the emulator: %w", err)
	}
	return exited, nil
}
