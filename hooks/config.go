// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	// NamespaceURI identifies Frail's metadata element in a domain's XML.
	NamespaceURI = "urn:frail:domain:1.0"

	// MetadataKey is the namespace prefix Frail writes the element with. Any
	// prefix is read.
	MetadataKey = "frail"

	// namespaceFamily is what the namespace URIs of all versions begin with.
	namespaceFamily = "urn:frail:domain:"

	// maxXMLBytes bounds a domain's XML. libvirt itself accepts documents up to
	// the RPC limit of 4 MiB for one string; a status file wraps one of those.
	maxXMLBytes = 8 << 20

	// maxXMLDepth bounds the nesting of a domain's XML, as libxml2 does.
	maxXMLDepth = 256

	// maxQuoted bounds what an error repeats of a document, in bytes.
	maxQuoted = 64
)

// Config is what a domain's metadata asks of Frail. The zero value asks for
// nothing: the domain is never touched.
type Config struct {
	// Trace asks for the guest's system calls.
	Trace bool

	// Exits says which guest transitions trap. Meaningful only with Trace.
	Exits Exits

	// Sequence asks for the analysis of the guest's call sequences. It is on only
	// with Trace.
	Sequence Sequence

	// Record asks for a flight record of the guest's calls. It is given only with Trace.
	Record Record
}

// Exits says which guest transitions of a traced domain trap.
type Exits uint8

const (
	// ExitsBoth traps system call entries and returns. It is the default.
	ExitsBoth Exits = iota
	// ExitsEntry traps entries alone, one exit a call instead of two. A call's return is
	// told at its thread's next call.
	ExitsEntry
)

// String returns the value of the exits attribute.
func (e Exits) String() string {
	switch e {
	case ExitsBoth:
		return "both"
	case ExitsEntry:
		return "entry"
	default:
		return fmt.Sprintf("exits(%d)", uint8(e))
	}
}

// ParseExits returns the Exits whose String is s.
func ParseExits(s string) (Exits, error) {
	for _, e := range []Exits{ExitsBoth, ExitsEntry} {
		if s == e.String() {
			return e, nil
		}
	}
	return 0, fmt.Errorf(`unknown value %s: use "both" or "entry"`, quote(s))
}

// ConfigError reports a metadata element that Frail does not understand. The
// domain it belongs to is not traced.
type ConfigError struct {
	// Where names the offending element or attribute, such as
	// "frail/trace/@exits".
	Where string

	// Reason says what is wrong there and, where it can be known, what would
	// be right.
	Reason string
}

// Error returns the place and the reason in one line.
func (e *ConfigError) Error() string {
	return "invalid frail metadata: " + e.Where + ": " + e.Reason
}

func configErrorf(where, format string, args ...any) *ConfigError {
	return &ConfigError{Where: where, Reason: fmt.Sprintf(format, args...)}
}

// ParseConfig returns what domainXML, a libvirt domain document, asks of Frail.
// A document without Frail's element gives the zero Config.
//
// A *[ConfigError] reports an element that is not understood; any other error
// means that domainXML is not a domain document.
func ParseConfig(domainXML []byte) (Config, error) {
	l, err := parseListed(domainXML)
	if err != nil {
		return Config{}, fmt.Errorf("parse domain XML: %w", err)
	}
	return l.config, l.configErr
}

// parseListed returns what Frail reads of a libvirt domain document.
func parseListed(doc []byte) (*listedDomain, error) {
	if len(doc) > maxXMLBytes {
		return nil, fmt.Errorf("%d bytes are more than the limit of %d", len(doc), maxXMLBytes)
	}
	d := newDecoder(bytes.NewReader(doc))
	root, err := d.root("domain")
	if err != nil {
		return nil, err
	}
	dom, err := d.domain(root)
	if err == nil {
		err = d.end()
	}
	if err != nil {
		return nil, err
	}
	return &listedDomain{
		uuid:      dom.uuid,
		name:      dom.name,
		id:        dom.id,
		active:    dom.id != 0,
		config:    dom.config,
		configErr: dom.configErr,
	}, nil
}

// domainXML is what Frail reads of a <domain> element.
type domainXML struct {
	id        int // 0 when the domain is not running
	name      string
	uuid      string
	config    Config
	configErr error
}

// decoder reads XML whose size the caller has bounded, and bounds its depth.
type decoder struct {
	xml   *xml.Decoder
	depth int
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{xml: xml.NewDecoder(r)}
}

// token returns the next token. The decoder checks that elements are closed in
// order, so depth is right whenever err is nil.
func (d *decoder) token() (xml.Token, error) {
	tok, err := d.xml.Token()
	if err != nil {
		return nil, err
	}
	switch tok.(type) {
	case xml.StartElement:
		if d.depth++; d.depth > maxXMLDepth {
			return nil, fmt.Errorf("elements are nested deeper than %d", maxXMLDepth)
		}
	case xml.EndElement:
		d.depth--
	}
	return tok, nil
}

// root returns the document's root element, which must be called name.
func (d *decoder) root(name string) (xml.StartElement, error) {
	for {
		tok, err := d.token()
		if errors.Is(err, io.EOF) {
			return xml.StartElement{}, errors.New("the document has no root element")
		}
		if err != nil {
			return xml.StartElement{}, err
		}
		start, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name != (xml.Name{Local: name}) {
			return xml.StartElement{}, fmt.Errorf("the root element is %s, not <%s>", quoteName(start.Name), name)
		}
		return start, nil
	}
}

// end reads to the end of the document.
func (d *decoder) end() error {
	for {
		tok, err := d.token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if start, ok := tok.(xml.StartElement); ok {
			return fmt.Errorf("a second root element %s", quoteName(start.Name))
		}
	}
}

// skip reads to the end of the element whose start was read last.
func (d *decoder) skip() error {
	for depth := d.depth; d.depth >= depth; {
		if _, err := d.token(); err != nil {
			return noEOF(err)
		}
	}
	return nil
}

// text returns the character data of the element whose start was read last.
func (d *decoder) text() (string, error) {
	var b strings.Builder
	for depth := d.depth; ; {
		tok, err := d.token()
		if err != nil {
			return "", noEOF(err)
		}
		if data, ok := tok.(xml.CharData); ok && d.depth == depth {
			b.Write(data)
		}
		if d.depth < depth {
			return strings.TrimSpace(b.String()), nil
		}
	}
}

// children calls child for each child element of the element whose start was
// read last. child must consume the element.
func (d *decoder) children(child func(xml.StartElement) error) error {
	for depth := d.depth; ; {
		tok, err := d.token()
		if err != nil {
			return noEOF(err)
		}
		if d.depth < depth {
			return nil
		}
		if start, ok := tok.(xml.StartElement); ok {
			if err := child(start); err != nil {
				return err
			}
		}
	}
}

// domain reads the <domain> element start.
func (d *decoder) domain(start xml.StartElement) (domainXML, error) {
	var (
		dom  domainXML
		seen bool
	)
	for _, a := range start.Attr {
		if a.Name.Space == "" && a.Name.Local == "id" {
			if _, err := fmt.Sscanf(a.Value, "%d", &dom.id); err != nil {
				return dom, fmt.Errorf("domain id %s is not a number", quote(a.Value))
			}
		}
	}
	err := d.children(func(start xml.StartElement) (err error) {
		switch start.Name {
		case xml.Name{Local: "name"}:
			dom.name, err = d.text()
		case xml.Name{Local: "uuid"}:
			dom.uuid, err = d.text()
		case xml.Name{Local: "metadata"}:
			err = d.children(func(start xml.StartElement) error {
				return d.metadataChild(start, &dom, &seen)
			})
		default:
			err = d.skip()
		}
		return err
	})
	if dom.configErr != nil {
		dom.config = Config{}
	}
	return dom, err
}

// metadataChild reads one top-level element of <metadata>; seen says whether
// Frail's was among those before.
func (d *decoder) metadataChild(start xml.StartElement, dom *domainXML, seen *bool) error {
	where := "metadata/" + quoteName(start.Name)
	switch {
	case start.Name.Space == NamespaceURI && *seen:
		dom.configErr = firstError(dom.configErr, configErrorf(where, "a second element in the namespace %s", NamespaceURI))
		return d.skip()
	case start.Name.Space == NamespaceURI:
		*seen = true
		cfgErr, err := d.frail(start, &dom.config)
		if cfgErr != nil {
			dom.configErr = firstError(dom.configErr, cfgErr)
		}
		return err
	case strings.HasPrefix(start.Name.Space, namespaceFamily):
		dom.configErr = firstError(dom.configErr, configErrorf(where, "the namespace %s is not supported by this version: use %s", quote(start.Name.Space), NamespaceURI))
	}
	return d.skip()
}

// firstError returns prior, or err when there is none.
func firstError(prior error, err *ConfigError) error {
	if prior != nil {
		return prior
	}
	return err
}

// frail reads Frail's element start into cfg. The first thing not understood
// comes back as a ConfigError, with the element read to its end.
func (d *decoder) frail(start xml.StartElement, cfg *Config) (*ConfigError, error) {
	var bad *ConfigError
	reject := func(where, format string, args ...any) {
		if bad == nil {
			bad = configErrorf(where, format, args...)
		}
	}

	if start.Name.Local != "frail" {
		reject("metadata/"+quoteName(start.Name), "the element must be called frail")
	}
	for _, a := range attributes(start) {
		reject("frail/@"+quoteName(a.Name), "unknown attribute")
	}

	depth := d.depth
	for {
		tok, err := d.token()
		if err != nil {
			return nil, noEOF(err)
		}
		if d.depth < depth {
			if cfg.Sequence.On && !cfg.Trace {
				reject("frail/sequence", "there is no <trace/>, without which there are no calls to analyse")
			}
			if cfg.Record != (Record{}) && !cfg.Trace {
				reject("frail/record", "there is no <trace/>, without which there are no calls to record")
			}
			return bad, nil
		}
		switch tok := tok.(type) {
		case xml.CharData:
			if text := strings.TrimSpace(string(tok)); text != "" {
				reject("frail", "unexpected text %s", quote(text))
			}
		case xml.StartElement:
			switch {
			case tok.Name.Space != NamespaceURI:
				reject("frail/"+quoteName(tok.Name), "element is not in the namespace %s (is a prefix missing?)", NamespaceURI)
				err = d.skip()
			case tok.Name.Local == "sequence" && cfg.Sequence.On:
				reject("frail/sequence", "the element occurs more than once")
				err = d.skip()
			case tok.Name.Local == "sequence":
				err = d.sequence(tok, cfg, reject)
			case tok.Name.Local == "record" && cfg.Record != (Record{}):
				reject("frail/record", "the element occurs more than once")
				err = d.skip()
			case tok.Name.Local == "record":
				err = d.record(tok, cfg, reject)
			case tok.Name.Local != "trace":
				reject("frail/"+quoteName(tok.Name), "unknown element")
				err = d.skip()
			case cfg.Trace:
				reject("frail/trace", "the element occurs more than once")
				err = d.skip()
			default:
				err = d.trace(tok, cfg, reject)
			}
			if err != nil {
				return nil, err
			}
		}
	}
}

// trace reads the <trace> element start into cfg.
func (d *decoder) trace(start xml.StartElement, cfg *Config, reject func(where, format string, args ...any)) error {
	cfg.Trace = true
	for _, a := range attributes(start) {
		if a.Name != (xml.Name{Local: "exits"}) {
			reject("frail/trace/@"+quoteName(a.Name), "unknown attribute")
			continue
		}
		var err error
		if cfg.Exits, err = ParseExits(a.Value); err != nil {
			reject("frail/trace/@exits", "%s", err)
		}
	}

	return d.empty("frail/trace", reject)
}

// attributes returns start's attributes without its namespace declarations.
func attributes(start xml.StartElement) []xml.Attr {
	var attrs []xml.Attr
	for _, a := range start.Attr {
		if a.Name.Space == "xmlns" || a.Name == (xml.Name{Local: "xmlns"}) {
			continue
		}
		attrs = append(attrs, a)
	}
	return attrs
}

// noEOF turns the end of input inside an element into the error it is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// quoteName returns a name as the document's author knows it, without the
// namespace, safe to print.
func quoteName(n xml.Name) string {
	q := quote(n.Local)
	return q[1 : len(q)-1]
}

// quote returns s quoted, cut to maxQuoted bytes, safe to print.
func quote(s string) string {
	if len(s) > maxQuoted {
		cut := maxQuoted
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "..."
	}
	return fmt.Sprintf("%q", s)
}
