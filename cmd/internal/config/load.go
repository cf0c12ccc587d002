// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFileBytes bounds each file: the shipped one is 3 KiB.
const maxFileBytes = 1 << 20

// Error is a mistake in a file of the configuration.
type Error struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // 0: it is not of a line
	Key     string `json:"key"`  // empty: it is not of a key
	Message string `json:"message"`
}

// Error returns "FILE:LINE: KEY: MESSAGE", without what is not known.
func (e *Error) Error() string {
	text := e.File
	if e.Line > 0 {
		text += ":" + strconv.Itoa(e.Line)
	}
	if e.Key != "" {
		text += ": " + e.Key
	}
	return text + ": " + e.Message
}

// Errors are the mistakes of a configuration in the order in which its files are read.
type Errors []*Error

// Error returns one mistake a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Loaded is a configuration and where it is from.
type Loaded struct {
	*Config
	// Files that were read, in this order.
	Files []string

	origin map[string]place // by key; none: the default
}

type place struct {
	file string
	line int
}

// Load reads the file at path, then the drop-ins: the files conf.d/*.toml beside it, in the
// order of their names. What a later one says of a key is what counts. A file at path that
// does not exist is an error only when must is set. If there are mistakes, the error is of
// type [Errors] and has all of them.
func Load(path string, must bool) (*Loaded, error) {
	l := &Loaded{Config: Default(), origin: make(map[string]place)}
	var mistakes Errors
	add := func(file string, err error) {
		if err != nil {
			mistakes = append(mistakes, asErrors(file, err)...)
		}
	}
	dir := filepath.Join(filepath.Dir(path), "conf.d")
	dropIns, err := os.ReadDir(dir) // sorted
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		add(dir, err)
	}
	if err := l.read(path); must || !errors.Is(err, os.ErrNotExist) {
		add(path, err)
	}
	for _, f := range dropIns {
		if name := f.Name(); strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			file := filepath.Join(dir, name)
			add(file, l.read(file))
		}
	}
	l.validate(func(key, format string, args ...any) {
		at := l.origin[key]
		mistakes = append(mistakes, &Error{at.file, at.line, key, fmt.Sprintf(format, args...)})
	})
	if len(mistakes) > 0 {
		slices.SortStableFunc(mistakes, func(a, b *Error) int {
			return cmp.Or(slices.Index(l.Files, a.File)-slices.Index(l.Files, b.File), a.Line-b.Line)
		})
		return nil, mistakes
	}
	return l, nil
}

// asErrors returns the mistakes of a file that could not be read or has some.
func asErrors(file string, err error) Errors {
	if mistakes, ok := errors.AsType[Errors](err); ok {
		return mistakes
	}
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err // it names the file
	}
	return Errors{{File: file, Message: err.Error()}}
}

// read lays a file over what was read before.
func (l *Loaded) read(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	l.Files = append(l.Files, file)
	text, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return err
	}
	if len(text) > maxFileBytes {
		return fmt.Errorf("is larger than %d bytes", maxFileBytes)
	}
	return l.parse(file, string(text))
}

// parse lays a file's text over what was parsed before. Its error is of type Errors.
func (l *Loaded) parse(file, text string) error {
	var doc document
	if err := doc.decode(text); err != nil {
		line := 0
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			line = pe.Position.Line
		}
		return Errors{{File: file, Line: line, Message: valueError(err)}}
	}
	known := make(map[string]field)
	for _, f := range l.fields() {
		known[f.section], known[f.name()] = field{}, f
	}
	var mistakes Errors
	seen := make(map[string]bool)
	for _, key := range doc.meta.Keys() {
		// What is below a key that is unknown, or no table, is not looked at.
		for n := 1; n <= min(len(key), 2); n++ {
			name := key[:n].String()
			f, ok := known[name]
			message := ""
			switch {
			case !ok:
				message = "unknown key"
			case n == 1 && doc.meta.Type(name) != "Hash" && doc.meta.Type(name) != "":
				message = "is a section: its keys come after a line [" + name + "]"
			case n == 2 && !seen[name]:
				if err := doc.meta.PrimitiveDecode(doc.at(key[:2]), f.value.Addr().Interface()); err != nil {
					message = valueError(err)
				} else {
					l.origin[name] = place{file, doc.line(key)}
				}
			}
			if message != "" && !seen[name] {
				mistakes = append(mistakes, &Error{file, doc.line(key), name, message})
			}
			if message != "" || n == 2 {
				seen[name] = true
			}
			if message != "" {
				break
			}
		}
	}
	if len(mistakes) > 0 {
		return mistakes
	}
	return nil
}

// document is a parsed file.
type document struct {
	values map[string]toml.Primitive
	meta   toml.MetaData
}

func (d *document) decode(text string) (err error) {
	d.meta, err = toml.Decode(text, &d.values)
	return err
}

// at returns the value of a key of the document, or the array of tables that it is in.
func (d *document) at(key toml.Key) toml.Primitive {
	value := d.values[key[0]]
	for _, name := range key[1:] {
		var table map[string]toml.Primitive
		if d.meta.PrimitiveDecode(value, &table) != nil || table == nil {
			break
		}
		value = table[name]
	}
	return value
}

// line returns the line of a key of the document, 0 when it cannot be told. The toml
// package gives the position of a key only in the errors of a value that does not decode.
func (d *document) line(key toml.Key) int {
	pe, _ := errors.AsType[toml.ParseError](d.meta.PrimitiveDecode(d.at(key), new(refusal)))
	return pe.Position.Line
}

// refusal takes no value.
type refusal struct{}

// UnmarshalTOML always fails.
func (refusal) UnmarshalTOML(any) error { return errors.New("refused") }

// valueError returns what is wrong with a value, without the place, which the toml package
// puts before it.
func valueError(err error) string {
	if pe, ok := errors.AsType[toml.ParseError](err); ok {
		return pe.Message
	}
	text := err.Error()
	if _, after, ok := strings.Cut(text, "): "); ok {
		text = after
	}
	return text
}

// WriteTOML writes the effective configuration as a file of its own, with the place that
// each value is from.
func (l *Loaded) WriteTOML(w io.Writer) error {
	var out bytes.Buffer
	section := ""
	for _, f := range l.fields() {
		if f.section != section {
			if section != "" {
				out.WriteByte('\n')
			}
			section = f.section
			fmt.Fprintf(&out, "[%s]\n", section)
		}
		from := "default"
		if at, ok := l.origin[f.name()]; ok {
			from = fmt.Sprintf("%s:%d", at.file, at.line)
		}
		value, err := f.text()
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s = %s # %s\n", f.key, value, from)
	}
	_, err := w.Write(out.Bytes())
	return err
}

// text returns the value as TOML.
func (f field) text() (string, error) {
	line, err := toml.Marshal(map[string]any{"v": f.value.Interface()})
	if err != nil {
		return "", fmt.Errorf("format %s: %w", f.name(), err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(line), "v = ")), nil
}

// MarshalJSON returns the files, and of each key its value and the place that it is from.
func (l *Loaded) MarshalJSON() ([]byte, error) {
	type value struct {
		Value any    `json:"value"`
		File  string `json:"file,omitempty"` // none: the default
		Line  int    `json:"line,omitempty"`
	}
	values := make(map[string]value)
	for _, f := range l.fields() {
		at := l.origin[f.name()]
		values[f.name()] = value{f.value.Interface(), at.file, at.line}
	}
	return json.Marshal(struct {
		Files  []string         `json:"files"`
		Values map[string]value `json:"values"`
	}{append([]string{}, l.Files...), values})
}
