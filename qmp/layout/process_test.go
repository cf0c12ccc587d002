// SPDX-License-Identifier: Apache-2.0

package layout

import "testing"

// States are those of include/linux/sched.h.
func TestStateLetter(t *testing.T) {
	for _, tt := range []struct {
		state, exit uint64
		want        byte
	}{
		{0, 0, 'R'}, {1, 0, 'S'}, {2, 0, 'D'}, {0x102, 0, 'D'}, {4, 0, 'T'}, {0x104, 0, 'T'}, {8, 0, 't'}, {0x80, 0x10, 'X'},
		{0x80, 0x20, 'Z'}, {0x40, 0, 'P'}, {0x402, 0, 'I'}, {0x1000, 0, 'D'}, {0x8000, 0, 'D'}, {0x200, 0, 'R'},
		{1<<64 - 1, 1<<64 - 1, 'D'}, {0xf7f, 0, 'I'},
	} {
		if got := stateLetter(tt.state, tt.exit); got != tt.want {
			t.Errorf("state %#x, exit state %#x: %c, want %c", tt.state, tt.exit, got, tt.want)
		}
	}
}
