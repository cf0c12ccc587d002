// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// record is one line of "frail trace --json"; package frail/tracer/format
// documents the fields. Names here are the guest's: a process and its threads.
type record struct {
	Type     string `json:"type"`
	Boot     uint64 `json:"boot_ns"`
	VM       uint32 `json:"vm"`
	Identity bool   `json:"identity"`
	Comm     string `json:"comm"`
	TID      int    `json:"pid"`
	PID      int    `json:"tgid"`
	Table    string `json:"table"`
	Nr       *int64 `json:"nr"`
	Syscall  string `json:"syscall"`
	Args     []arg  `json:"args"`
	Entry    string `json:"entry"`
	Ret      *int64 `json:"ret"`
	Deferred bool   `json:"deferred"`
	Text     string `json:"text"`
	Left     string `json:"left"`
	Data     []struct {
		Fault bool `json:"fault"`
	} `json:"data"`

	Delivered uint64 `json:"delivered"`
	Unjudged  uint64 `json:"unjudged"`
	Lost      struct {
		Total uint64 `json:"total"`
	} `json:"lost"`
}

// Types of records.
const (
	recordEnter   = "enter"
	recordExit    = "exit"
	recordLost    = "lost"
	recordSummary = "summary"
)

// Tables of system calls.
const (
	table64  = "64"
	table32  = "32"
	tableX32 = "x32"
)

// arg is an argument, in hexadecimal.
type arg uint64

func (a *arg) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	v, err := strconv.ParseUint(text, 0, 64)
	*a = arg(v)
	return err
}

func (r record) isEvent() bool { return r.Type == recordEnter || r.Type == recordExit }

func (r record) String() string {
	nr := "?"
	if r.Nr != nil {
		nr = strconv.FormatInt(*r.Nr, 10)
	}
	s := fmt.Sprintf("%s[%d/%d] %s of %q (%s in table %s)", r.Comm, r.PID, r.TID, r.Type, r.Syscall, nr, r.Table)
	if r.Type == recordExit {
		if r.Ret == nil {
			return s + " = ?"
		}
		return fmt.Sprintf("%s = %d", s, *r.Ret)
	}
	return fmt.Sprintf("%s%#x", s, r.Args)
}
