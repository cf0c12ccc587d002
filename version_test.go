// SPDX-License-Identifier: Apache-2.0

package frail

import (
	"os"
	"regexp"
	"testing"
)

func TestVersion(t *testing.T) {
	if !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(Version()) {
		t.Errorf("VERSION says %q, not a release as in 1.2.3", Version())
	}
}

// Debian's packages have their version from the changelog.
func TestVersionOfDebianPackages(t *testing.T) {
	log, err := os.ReadFile("packaging/debian/changelog")
	if err != nil {
		t.Fatal(err)
	}
	entry := regexp.MustCompile(`^frail \(([^)]+)-[^-)]+\) `).FindSubmatch(log)
	if entry == nil {
		t.Fatal("the changelog does not begin with an entry of frail")
	}
	if got := string(entry[1]); got != Version() {
		t.Errorf("the changelog begins with %s, VERSION says %s", got, Version())
	}
}
