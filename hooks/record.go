// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"encoding/xml"
	"fmt"
	"strconv"
)

// Record is what a domain's metadata asks of the flight recorder. The zero value leaves it to
// the daemon.
type Record struct {
	// SecondsPlus1 is one more than how many seconds of the guest's calls are to be kept; 0:
	// not given.
	SecondsPlus1 uint32
}

// MaxRecordSeconds is how much a flight record is of at most: a day.
const MaxRecordSeconds = 86400

// record reads the <record> element start into cfg.
func (d *decoder) record(start xml.StartElement, cfg *Config, reject func(where, format string, args ...any)) error {
	given := false
	for _, a := range attributes(start) {
		where := "frail/record/@" + quoteName(a.Name)
		if a.Name != (xml.Name{Local: "seconds"}) {
			reject(where, "unknown attribute")
			continue
		}
		given = true
		n, err := strconv.ParseUint(a.Value, 10, 32)
		if err != nil || n > MaxRecordSeconds {
			reject(where, "%s is not a number from 0 to %d", quote(a.Value), MaxRecordSeconds)
			continue
		}
		cfg.Record.SecondsPlus1 = uint32(n) + 1
	}
	if !given {
		reject("frail/record/@seconds", "is missing")
	}
	return d.empty("frail/record", reject)
}

// element returns the element that asks for r, empty if that asks for nothing.
func (r Record) element() string {
	if r.SecondsPlus1 == 0 {
		return ""
	}
	return fmt.Sprintf(`<record seconds="%d"/>`, r.SecondsPlus1-1)
}
