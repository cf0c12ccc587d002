// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"frail/hooks"
)

// A VM that is armed is given back as soon as it is not what the domain asks for.
func TestArmedServes(t *testing.T) {
	asks := func(change func(*hooks.State)) hooks.State {
		st := hooks.State{
			Active: true, Launched: true, PID: 100,
			Config: hooks.Config{Trace: true, Exits: hooks.ExitsEntry},
		}
		change(&st)
		return st
	}
	a := &armed{pid: 100, exits: hooks.ExitsEntry}
	for _, tc := range []struct {
		name string
		want hooks.State
		ok   bool
	}{
		{"the same", asks(func(*hooks.State) {}), true},
		{"analysed too", asks(func(st *hooks.State) { st.Config.Sequence.On = true }), true},
		{"reset", asks(func(st *hooks.State) { st.Resets = 1 }), true},
		{"other exits", asks(func(st *hooks.State) { st.Config.Exits = hooks.ExitsBoth }), false},
		{"another process", asks(func(st *hooks.State) { st.PID = 101 }), false},
		{"disabled", asks(func(st *hooks.State) { st.Config = hooks.Config{} }), false},
		{"shut off", asks(func(st *hooks.State) { st.Active = false }), false},
	} {
		if got := a.serves(tc.want); got != tc.ok {
			t.Errorf("%s: serves: %t, want %t", tc.name, got, tc.ok)
		}
	}
}
