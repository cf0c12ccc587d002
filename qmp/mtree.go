// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// maxRegions bounds the RAM regions of one guest. A guest with every memory
// slot in use has some hundred.
const maxRegions = 4096

var (
	// A region of a flat view, as QEMU 2.10 and later print it:
	//   0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000
	// The types "rom", "romd", "ramd" (a device's memory) and "i/o" are not RAM.
	flatRegion = regexp.MustCompile(`^\s+([0-9a-fA-F]{1,16})-([0-9a-fA-F]{1,16}) \(prio -?\d+, (nv-)?ram\): `)

	// The answer to gpa2hva.
	hostAddress = regexp.MustCompile(`^Host virtual address for 0x[0-9a-fA-F]+ \(.*\) is (?:0x)?([0-9a-fA-F]{1,16})\s*$`)
)

// ramRegions asks QEMU for the RAM in the address space of its CPUs: sorted,
// disjoint, at least one.
func ramRegions(ctx context.Context, mon goqemu.Monitor) ([]Range, error) {
	text, err := humanCommand(ctx, mon, "info mtree -f")
	if err != nil {
		return nil, fmt.Errorf("find the guest's RAM: %w", err)
	}
	regions, err := parseFlatView(text)
	if err != nil {
		return nil, fmt.Errorf("find the guest's RAM in `info mtree -f`: %w", err)
	}
	return regions, nil
}

// parseFlatView returns the RAM of the flat view that the address space
// "memory" uses.
func parseFlatView(text string) ([]Range, error) {
	var regions []Range
	ours := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "FlatView #") {
			if ours {
				break
			}
			continue
		}
		if strings.HasPrefix(strings.TrimLeft(line, " "), `AS "memory", root: `) {
			ours = true
			continue
		}
		if !ours {
			continue
		}
		match := flatRegion.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		first, err := strconv.ParseUint(match[1], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("parse region %q: %w", line, err)
		}
		last, err := strconv.ParseUint(match[2], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("parse region %q: %w", line, err)
		}
		if last < first || last > maxAddress {
			return nil, fmt.Errorf("parse region %q: bounds out of range", line)
		}
		if n := len(regions); n > 0 && regions[n-1].End() > first {
			return nil, fmt.Errorf("parse region %q: out of order", line)
		}
		if len(regions) == maxRegions {
			return nil, fmt.Errorf("more than %d RAM regions", maxRegions)
		}
		regions = append(regions, Range{Start: first, Size: last - first + 1})
	}
	if !ours {
		return nil, errors.New(`no address space "memory"`)
	}
	if len(regions) == 0 {
		return nil, errors.New("no RAM")
	}
	return regions, nil
}

// translate asks QEMU where the guest physical address addr lies in its own
// address space.
func translate(ctx context.Context, mon goqemu.Monitor, addr uint64) (uint64, error) {
	text, err := humanCommand(ctx, mon, fmt.Sprintf("gpa2hva %#x", addr))
	if err != nil {
		return 0, err
	}
	return parseHostAddress(text)
}

func parseHostAddress(text string) (uint64, error) {
	text = strings.TrimSpace(text)
	match := hostAddress.FindStringSubmatch(text)
	if match == nil {
		const keep = 200
		return 0, fmt.Errorf("gpa2hva answered %q", text[:min(len(text), keep)])
	}
	return strconv.ParseUint(match[1], 16, 64)
}
