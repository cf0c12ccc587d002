// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"regexp"
	"strings"

	"frail/lab/truth"
)

// outcome is what became of a test. One that has begun and not ended has none.
type outcome string

const (
	passed  outcome = "PASS"
	failed  outcome = "FAIL"
	skipped outcome = "SKIP"
)

// lines calls each with every line that is written to it.
type lines struct {
	each func(line string) error
	rest []byte // the last one, as far as it has come
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if err := l.each(string(line)); err != nil {
			return 0, err
		}
		l.rest = rest
	}
}

// flush passes on a last line that has no end.
func (l *lines) flush() {
	if len(l.rest) > 0 {
		l.Write([]byte("\n"))
	}
}

// output reads what a test binary prints with -test.v, mixed with whatever else is
// printed, as it comes.
type output struct {
	tests    []string // and their subtests, as they began
	outcomes map[string]outcome
	reports  []report
	notes    map[string][]string // of tests: the last lines with a place in their source

	current string // the test that prints
}

// report is what a comparison of two records found.
type report struct {
	test string
	*truth.Report
}

var (
	beginLine = regexp.MustCompile(`^=== (RUN|NAME|CONT) +(\S+)`)
	endLine   = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) \(`)
	noteLine  = regexp.MustCompile(`^ +\w+\.go:\d+: `)
)

// Of each test's notes: how many are kept, and how long they may be in bytes.
const (
	maxNotes = 3
	maxNote  = 300
)

// read never fails.
func (o *output) read(line string) error {
	if o.outcomes == nil {
		o.outcomes = map[string]outcome{}
		o.notes = map[string][]string{}
	}
	if m := beginLine.FindStringSubmatch(line); m != nil {
		o.current = m[2]
		if m[1] == "RUN" {
			o.tests = append(o.tests, m[2])
		}
	} else if m := endLine.FindStringSubmatch(line); m != nil {
		o.outcomes[m[2]] = outcome(m[1])
	} else if r, ok := truth.ParseReport(line); ok {
		o.reports = append(o.reports, report{o.current, r})
	} else if noteLine.MatchString(line) {
		notes := append(o.notes[o.current], strings.TrimSpace(line[:min(len(line), maxNote)]))
		o.notes[o.current] = notes[max(0, len(notes)-maxNotes):]
	}
	return nil
}

// ended returns the tests, subtests among them, that ended in this way; those that did
// not end if it is "".
func (o *output) ended(want outcome) (names []string) {
	for _, name := range o.tests {
		if o.outcomes[name] == want {
			names = append(names, name)
		}
	}
	return names
}
