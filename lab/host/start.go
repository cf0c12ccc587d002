// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"frail/lab/child"
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
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
	exited, err := child.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start the emulator: %w", err)
	}
	return exited, nil
}
