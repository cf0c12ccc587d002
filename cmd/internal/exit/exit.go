// SPDX-License-Identifier: Apache-2.0

// Package exit has the exit statuses of Frail's programs.
package exit

import (
	"errors"
	"fmt"
	"strings"
)

// Status is an exit status. A new one goes to the end: scripts know the others.
type Status int

// The statuses. fraild uses those up to Usage.
const (
	Success Status = iota
	Failure
	Usage
	Unreachable
	NotFound
	WrongState
)

var meanings = []string{
	Success:     "success",
	Failure:     "failure; also if doctor or config check found something wrong",
	Usage:       "wrong usage: no such command or flag, or a bad value; of fraild: or a bad configuration",
	Unreachable: "fraild, libvirt or QEMU does not run, does not answer, or refuses this user",
	NotFound:    "no such domain or profile",
	WrongState:  "the domain is in no state for this: it does not run, or is not traced",
}

// Table describes every status, one to a line.
func Table() string {
	var b strings.Builder
	for status, meaning := range meanings {
		fmt.Fprintf(&b, "  %d  %s\n", status, meaning)
	}
	return b.String()
}

// statusError is an error that asks for an exit status.
type statusError struct {
	error
	status Status
}

func (e *statusError) Unwrap() error { return e.error }

// With returns err with the status of a program that ends by it. A nil err stays nil.
func With(status Status, err error) error {
	if err == nil {
		return nil
	}
	return &statusError{err, status}
}

// Usagef returns an error about the command line.
func Usagef(format string, args ...any) error { return With(Usage, fmt.Errorf(format, args...)) }

// Of returns err's status; Failure if it has none, and Success if it is nil.
func Of(err error) Status {
	if err == nil {
		return Success
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	return Failure
}
