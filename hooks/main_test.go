// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"testing"

	"frail/hooks/libvirttest"
)

func TestMain(m *testing.M) { libvirttest.Main(m) }
