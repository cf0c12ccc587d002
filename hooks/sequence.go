// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"encoding/xml"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Sequence is what a domain's metadata asks of the analysis of call sequences. The zero
// value asks for none. What is not given is the daemon's default; numbers are kept one
// higher than they are, so that 0 is "not given".
type Sequence struct {
	// On asks for the analysis.
	On bool
	// Learn is whether profiles grow; if not, they are judged by as they are.
	Learn Choice
	// TolerizePlus1, AnomalyPlus1 and ProcessesPlus1 are limits: of anomalous calls in
	// a thread's last 128, in a profile, and of anomalous processes of an executable.
	TolerizePlus1, AnomalyPlus1, ProcessesPlus1 uint32
	// NormalWaitPlus1 is how long a frozen profile waits before it judges.
	NormalWaitPlus1 time.Duration
}

// Choice is a yes or no that may be not given.
type Choice uint8

const (
	// NotGiven leaves the choice to the default.
	NotGiven Choice = iota
	Yes
	No
)

// Bounds of the limits: the locality frame has 128 calls, and 64 processes are remembered.
const (
	maxTolerize  = 127
	maxAnomaly   = math.MaxInt32
	maxProcesses = 63
)

// ParseDuration parses a duration as of time.ParseDuration, or a whole number of days (d)
// or weeks (w). It is not negative.
func ParseDuration(s string) (time.Duration, error) {
	unit := time.Duration(0)
	switch {
	case strings.HasSuffix(s, "d"):
		unit = 24 * time.Hour
	case strings.HasSuffix(s, "w"):
		unit = 7 * 24 * time.Hour
	}
	if unit != 0 {
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
		if err != nil || time.Duration(n) > maxDuration/unit {
			return 0, errors.New(`want a duration such as "7d", "12h" or "30m"`)
		}
		return time.Duration(n) * unit, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxDuration {
		return 0, errors.New(`want a duration such as "7d", "12h" or "30m"`)
	}
	return d, nil
}

// maxDuration is more than anyone waits, and far from an overflow of a host's clock.
const maxDuration = 100 * 365 * 24 * time.Hour

// sequence reads the <sequence> element start into cfg.
func (d *decoder) sequence(start xml.StartElement, cfg *Config, reject func(where, format string, args ...any)) error {
	s := &cfg.Sequence
	s.On = true
	for _, a := range attributes(start) {
		where := "frail/sequence/@" + quoteName(a.Name)
		limit := func(to *uint32, high uint64) {
			n, err := strconv.ParseUint(a.Value, 10, 32)
			if err != nil || n > high {
				reject(where, "%s is not a number from 0 to %d", quote(a.Value), high)
				return
			}
			*to = uint32(n) + 1
		}
		switch a.Name {
		case xml.Name{Local: "learn"}:
			switch a.Value {
			case "yes":
				s.Learn = Yes
			case "no":
				s.Learn = No
			default:
				reject(where, `unknown value %s: use "yes" or "no"`, quote(a.Value))
			}
		case xml.Name{Local: "tolerize"}:
			limit(&s.TolerizePlus1, maxTolerize)
		case xml.Name{Local: "anomaly"}:
			limit(&s.AnomalyPlus1, maxAnomaly)
		case xml.Name{Local: "processes"}:
			limit(&s.ProcessesPlus1, maxProcesses)
		case xml.Name{Local: "normal-wait"}:
			wait, err := ParseDuration(a.Value)
			if err != nil {
				reject(where, "%s: %s", quote(a.Value), err)
				continue
			}
			s.NormalWaitPlus1 = wait + 1
		default:
			reject(where, "unknown attribute")
		}
	}
	return d.empty("frail/sequence", reject)
}

// element returns the element that asks for s, empty if that asks for nothing.
func (s Sequence) element() string {
	if !s.On {
		return ""
	}
	var b strings.Builder
	b.WriteString("<sequence")
	switch s.Learn {
	case Yes:
		b.WriteString(` learn="yes"`)
	case No:
		b.WriteString(` learn="no"`)
	}
	for _, limit := range []struct {
		name  string
		plus1 uint32
	}{
		{"tolerize", s.TolerizePlus1},
		{"anomaly", s.AnomalyPlus1},
		{"processes", s.ProcessesPlus1},
	} {
		if limit.plus1 != 0 {
			fmt.Fprintf(&b, ` %s="%d"`, limit.name, limit.plus1-1)
		}
	}
	if s.NormalWaitPlus1 != 0 {
		fmt.Fprintf(&b, ` normal-wait=%q`, s.NormalWaitPlus1-1)
	}
	b.WriteString("/>")
	return b.String()
}

// empty reads to the end of the element whose start was read last, which should hold
// nothing.
func (d *decoder) empty(where string, reject func(where, format string, args ...any)) error {
	depth := d.depth
	for {
		tok, err := d.token()
		if err != nil {
			return noEOF(err)
		}
		if d.depth < depth {
			return nil
		}
		switch tok := tok.(type) {
		case xml.CharData:
			if text := strings.TrimSpace(string(tok)); text != "" {
				reject(where, "unexpected text %s", quote(text))
			}
		case xml.StartElement:
			reject(fmt.Sprintf("%s/%s", where, quoteName(tok.Name)), "unknown element")
			if err := d.skip(); err != nil {
				return err
			}
		}
	}
}
