// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// inDomain returns a domain document around the contents of its metadata.
func inDomain(metadata string) string {
	return `<domain type='kvm' id='7'><name>vm</name><uuid>8bef7390-6f72-4765-ab18-31ca6b3a2bd7</uuid>` +
		`<metadata>` + metadata + `</metadata><memory>1</memory></domain>`
}

func TestParseConfig(t *testing.T) {
	const ns = `xmlns:frail="urn:frail:domain:1.0"`
	for _, test := range []struct {
		name  string
		doc   string
		trace bool
	}{
		{"no metadata", `<domain><name>vm</name></domain>`, false},
		{"no element of ours", inDomain(`<a:b xmlns:a="urn:a"><frail><trace/></frail></a:b>`), false},
		{"an empty element", inDomain(`<frail:frail ` + ns + `/>`), false},
		{"a traced domain", inDomain(`<frail:frail ` + ns + `><frail:trace/></frail:frail>`), true},
		{"another prefix", inDomain(`<x:frail xmlns:x="urn:frail:domain:1.0"><x:trace/></x:frail>`), true},
		{"a default namespace", inDomain(`<frail xmlns="urn:frail:domain:1.0"><trace/></frail>`), true},
		{"two prefixes", inDomain(`<a:frail xmlns:a="urn:frail:domain:1.0" xmlns:b="urn:frail:domain:1.0"><b:trace/></a:frail>`), true},
		{"both exits", inDomain(`<frail:frail ` + ns + `><frail:trace exits="both"/></frail:frail>`), true},
		{"white space and comments", inDomain("\n <!-- a --> <frail:frail " + ns + ">\n\t<!-- b -->\n <frail:trace>\n</frail:trace>\n</frail:frail>\n"), true},
		{"our element inside another's", inDomain(`<a:b xmlns:a="urn:a" ` + ns + `><frail:frail><frail:trace/></frail:frail></a:b>`), false},
		{"our element outside the metadata", `<domain><devices><frail:frail ` + ns + `><frail:trace/></frail:frail></devices></domain>`, false},
		{"an XML declaration and libvirt's comment", `<?xml version="1.0"?><!-- WARNING: THIS IS AN AUTO-GENERATED FILE. -->` + inDomain(``), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := ParseConfig([]byte(test.doc))
			if want := (Config{Trace: test.trace}); err != nil || cfg != want {
				t.Errorf("got %+v, %v, want %+v", cfg, err, want)
			}
		})
	}
}

func TestParseExits(t *testing.T) {
	for attribute, want := range map[string]Exits{``: ExitsBoth, ` exits="both"`: ExitsBoth, ` exits="entry"`: ExitsEntry} {
		cfg, err := ParseConfig([]byte(inDomain(`<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:trace` + attribute + `/></frail:frail>`)))
		if want := (Config{Trace: true, Exits: want}); err != nil || cfg != want {
			t.Errorf("%q: got %+v, %v, want %+v", attribute, cfg, err, want)
		}
	}
}

// What Enable writes asks for what it should.
func TestElement(t *testing.T) {
	for _, want := range []Config{
		{Trace: true},
		{Trace: true, Exits: ExitsEntry},
		{Trace: true, Sequence: Sequence{On: true}},
		{Trace: true, Exits: ExitsEntry, Sequence: Sequence{true, No, 13, 31, 1, 7*24*time.Hour + 1}},
		{Trace: true, Sequence: Sequence{On: true, Learn: Yes, NormalWaitPlus1: 1}},
		{Trace: true, Record: Record{SecondsPlus1: 31}},
		{Trace: true, Sequence: Sequence{On: true}, Record: Record{SecondsPlus1: 1}},
	} {
		element := strings.Replace(want.element(), "<frail>", `<frail xmlns="urn:frail:domain:1.0">`, 1)
		if got, err := ParseConfig([]byte(inDomain(element))); err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", element, got, err, want)
		}
	}
}

func TestParseSequence(t *testing.T) {
	const open, end = `<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:trace/>`, `</frail:frail>`
	for _, test := range []struct {
		name, element string
		want          Sequence
	}{
		{"defaults", `<frail:sequence/>`, Sequence{On: true}},
		{
			"all", `<frail:sequence learn="no" tolerize="12" anomaly="30" processes="0" normal-wait="7d"/>`,
			Sequence{true, No, 13, 31, 1, 7*24*time.Hour + 1},
		},
		{"no wait", `<frail:sequence learn="yes" normal-wait="0s"/>`, Sequence{On: true, Learn: Yes, NormalWaitPlus1: 1}},
		{"weeks", `<frail:sequence normal-wait="2w"/>`, Sequence{On: true, NormalWaitPlus1: 14*24*time.Hour + 1}},
		{"minutes", `<frail:sequence normal-wait="1h30m"/>`, Sequence{On: true, NormalWaitPlus1: 90*time.Minute + 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := ParseConfig([]byte(inDomain(open + test.element + end)))
			if want := (Config{Trace: true, Sequence: test.want}); err != nil || cfg != want {
				t.Errorf("got %+v, %v, want %+v", cfg, err, want)
			}
		})
	}
}

func TestParseConfigRejectsWhatItDoesNotKnow(t *testing.T) {
	const open, end = `<frail:frail xmlns:frail="urn:frail:domain:1.0">`, `</frail:frail>`
	for _, test := range []struct {
		name     string
		metadata string
		where    string
		reason   string
	}{
		{"another root", `<frail:trace xmlns:frail="urn:frail:domain:1.0"/>`, "metadata/trace", "the element must be called frail"},
		{"an unknown element", open + `<frail:alert/>` + end, "frail/alert", "unknown element"},
		{"an element without namespace", open + `<trace/>` + end, "frail/trace", "element is not in the namespace urn:frail:domain:1.0 (is a prefix missing?)"},
		{"an unknown element in trace", open + `<frail:trace><frail:calls/></frail:trace>` + end, "frail/trace/calls", "unknown element"},
		{"an attribute", `<frail:frail xmlns:frail="urn:frail:domain:1.0" on="yes"/>`, "frail/@on", "unknown attribute"},
		{"an attribute of trace", open + `<frail:trace on="yes"/>` + end, "frail/trace/@on", "unknown attribute"},
		{"no exits", open + `<frail:trace exits=""/>` + end, "frail/trace/@exits", `unknown value "": use "both" or "entry"`},
		{"an attribute with a namespace", open + `<frail:trace frail:exits="both"/>` + end, "frail/trace/@exits", "unknown attribute"},
		{"other exits", open + `<frail:trace exits="none"/>` + end, "frail/trace/@exits", `unknown value "none": use "both" or "entry"`},
		{"sequences without tracing", open + `<frail:sequence/>` + end, "frail/sequence", "there is no <trace/>, without which there are no calls to analyse"},
		{"sequence twice", open + `<frail:trace/><frail:sequence/><frail:sequence/>` + end, "frail/sequence", "the element occurs more than once"},
		{"an attribute of sequence", open + `<frail:trace/><frail:sequence delay="1"/>` + end, "frail/sequence/@delay", "unknown attribute"},
		{"other learning", open + `<frail:trace/><frail:sequence learn="on"/>` + end, "frail/sequence/@learn", `unknown value "on": use "yes" or "no"`},
		{"a limit beyond the frame", open + `<frail:trace/><frail:sequence tolerize="128"/>` + end, "frail/sequence/@tolerize", `"128" is not a number from 0 to 127`},
		{"a negative limit", open + `<frail:trace/><frail:sequence anomaly="-1"/>` + end, "frail/sequence/@anomaly", `"-1" is not a number from 0 to 2147483647`},
		{"a wait without unit", open + `<frail:trace/><frail:sequence normal-wait="7"/>` + end, "frail/sequence/@normal-wait", `"7": want a duration such as "7d", "12h" or "30m"`},
		{"a wait beyond all", open + `<frail:trace/><frail:sequence normal-wait="999999999d"/>` + end, "frail/sequence/@normal-wait", `"999999999d": want a duration such as "7d", "12h" or "30m"`},
		{"an element in sequence", open + `<frail:trace/><frail:sequence><frail:x/></frail:sequence>` + end, "frail/sequence/x", "unknown element"},
		{"text", open + `on` + end, "frail", `unexpected text "on"`},
		{"text in trace", open + `<frail:trace>on</frail:trace>` + end, "frail/trace", `unexpected text "on"`},
		{"trace twice", open + `<frail:trace/><frail:trace/>` + end, "frail/trace", "the element occurs more than once"},
		{"two elements", open + end + open + end, "metadata/frail", "a second element in the namespace urn:frail:domain:1.0"},
		{"another version", `<frail:frail xmlns:frail="urn:frail:domain:2.0"/>`, "metadata/frail", `the namespace "urn:frail:domain:2.0" is not supported by this version: use urn:frail:domain:1.0`},
		{"the first of many", open + `<frail:a/><frail:b/>c` + end, "frail/a", "unknown element"},
		{"a long value, cut", open + `<frail:trace exits="` + strings.Repeat("é", 999) + `"/>` + end, "frail/trace/@exits", `unknown value "` + strings.Repeat("é", maxQuoted/2) + `...": use "both" or "entry"`},
		{"control characters", open + "<frail:trace exits='\u009b2J'/>" + end, "frail/trace/@exits", `unknown value "\u009b2J": use "both" or "entry"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := ParseConfig([]byte(inDomain(test.metadata)))
			var bad *ConfigError
			if !errors.As(err, &bad) {
				t.Fatalf("got %+v, %v, want a *ConfigError", cfg, err)
			}
			if cfg != (Config{}) || bad.Where != test.where || bad.Reason != test.reason {
				t.Errorf("got %+v, %q, %q, want nothing asked for, %q, %q", cfg, bad.Where, bad.Reason, test.where, test.reason)
			}
		})
	}
}

func TestParseConfigRejectsWhatIsNoDomain(t *testing.T) {
	for _, test := range []struct{ name, doc, want string }{
		{"nothing", "", "the document has no root element"},
		{"text", "hello", "the document has no root element"},
		{"another document", "<network/>", "the root element is network, not <domain>"},
		{"a domain in a namespace", `<domain xmlns="urn:a"/>`, "the root element is domain, not <domain>"},
		{"a cut document", "<domain><metadata>", "unexpected EOF"},
		{"two documents", "<domain/><domain/>", "a second root element domain"},
		{"a broken tail", "<domain/><", "unexpected EOF"},
		{"a bad id", "<domain id='x'/>", `domain id "x" is not a number`},
		{"deep nesting", strings.Repeat("<domain>", maxXMLDepth+1), "elements are nested deeper than 256"},
		{"an undefined entity", "<domain>&bomb;</domain>", "invalid character entity"},
		{"too many bytes", strings.Repeat(" ", maxXMLBytes+1), "more than the limit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := ParseConfig([]byte(test.doc))
			var bad *ConfigError
			if err == nil || errors.As(err, &bad) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %+v, %v, want an error of the document with %q", cfg, err, test.want)
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(inDomain(traceElement))
	f.Add(inDomain(`<frail:frail xmlns:frail="urn:frail:domain:2.0"/>`))
	f.Add(`<domain id='-1'/>`)
	f.Fuzz(func(t *testing.T, doc string) {
		cfg, err := ParseConfig([]byte(doc))
		if err != nil && cfg != (Config{}) {
			t.Errorf("%+v with the error %v", cfg, err)
		}
		if cfg.Trace && !strings.Contains(doc, "trace") {
			t.Errorf("traced without asking")
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add(`<domstatus state='running' pid='12'><vcpus><vcpu id='0' pid='13'/></vcpus>` + inDomain(traceElement) + `</domstatus>`)
	f.Add(`<domstatus pid='0'>` + inDomain("") + `</domstatus>`)
	f.Fuzz(func(t *testing.T, doc string) {
		s, err := parseStatus([]byte(doc))
		if err == nil && (s.uuid == "" || s.name == "" || s.pid < 0) {
			t.Errorf("accepted %+v", s)
		}
	})
}

func TestRecordElement(t *testing.T) {
	const open = `<frail:frail xmlns:frail="urn:frail:domain:1.0">`
	for element, want := range map[string]string{
		`<frail:trace/><frail:record/>`:                                        "frail/record/@seconds: is missing",
		`<frail:trace/><frail:record seconds="-1"/>`:                           "frail/record/@seconds: \"-1\" is not a number from 0 to 86400",
		`<frail:trace/><frail:record seconds="86401"/>`:                        "frail/record/@seconds: \"86401\" is not a number from 0 to 86400",
		`<frail:trace/><frail:record seconds="1" minutes="1"/>`:                "frail/record/@minutes: unknown attribute",
		`<frail:trace/><frail:record seconds="1">x</frail:record>`:             "frail/record: unexpected text \"x\"",
		`<frail:trace/><frail:record seconds="1"/><frail:record seconds="2"/>`: "frail/record: the element occurs more than once",
		`<frail:record seconds="1"/>`:                                          "frail/record: there is no <trace/>, without which there are no calls to record",
	} {
		_, err := ParseConfig([]byte(inDomain(open + element + `</frail:frail>`)))
		if err == nil || err.Error() != "invalid frail metadata: "+want {
			t.Errorf("%s: %v, want %s", element, err, want)
		}
	}
}
