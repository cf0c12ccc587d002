// SPDX-License-Identifier: Apache-2.0

package qmp_test

import (
	"testing"

	"frail/hooks/libvirttest"
)

func TestMain(m *testing.M) { libvirttest.Main(m) }
