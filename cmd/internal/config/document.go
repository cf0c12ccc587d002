// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"regexp"
	"strings"

	"frail/packaging"
)

//go:generate go test -tags libvirt_dlopen -count=1 -run ^TestDocument$ . -update

var (
	sectionLine = regexp.MustCompile(`^\[[a-z]+\]$`)
	shownKey    = regexp.MustCompile(`^#([a-z_]+) = (.*)$`)
)

// Escape returns plain text as Markdown.
func Escape(text string) string {
	return strings.NewReplacer(`\`, `\\`, "<", `\<`, ">", `\>`, "*", `\*`, "_", `\_`, "`", "\\`", "[", `\[`).Replace(text)
}

// Markdown describes the files and every key, from what the shipped file says of it, with
// headings of the second level.
func Markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, `fraild reads %s, then its drop-ins: the files `+"`conf.d/*.toml`"+` beside it, in the order of their names. Each
may have any of the keys; of a key that several have, the last one counts. A key that is unknown and a value that does not fit
are errors, and fraild does not start. With --config FILE the file is that one, and its drop-ins are beside it.

`+"`frail config check`"+` reads what fraild would read. It prints each key's value and the place that it is from, or every
error with its file and line. `+"`systemctl reload fraild`"+` makes fraild read it again. What
has changed of `+"`%s`"+` holds at once; of other keys it takes a restart, and the journal says so.
The guests go on then, untraced in between. With a mistake in it, what was read before holds.
`, "`"+DefaultPath+"`", strings.Join(LiveKeys, "`, `"))
	var keys, text []string                             // of the paragraph that is read
	_, body, _ := strings.Cut(packaging.Config, "\n\n") // after the file's own comment
	for line := range strings.SplitSeq(body, "\n") {
		switch m := shownKey.FindStringSubmatch(line); {
		case m != nil:
			keys = append(keys, m[1]+" = "+m[2])
		case sectionLine.MatchString(line):
			out.WriteString("\n## " + line + "\n")
		case line != "":
			text = append(text, Escape(strings.TrimPrefix(line, "# ")))
		default:
			if len(keys) > 0 {
				out.WriteString("\n    " + strings.Join(keys, "\n    ") + "\n")
			}
			if len(text) > 0 {
				out.WriteString("\n" + strings.Join(text, "\n") + "\n")
			}
			keys, text = nil, nil
		}
	}
	return out.String()
}
