// SPDX-License-Identifier: Apache-2.0

package layout

import "testing"

// A guest that comes with ever other kernels makes a Resolver forget, not grow.
func TestKnownKernelsAreBounded(t *testing.T) {
	kernelOf := func(names int) *kernel {
		return &kernel{symbols: &symbols{symbolTable: &symbolTable{names: make([]byte, names)}}, types: new(btfTypes)}
	}
	var r Resolver
	first := kernelOf(1)
	r.use(first)
	for range maxKernels - 1 {
		r.use(kernelOf(1))
	}
	r.use(first)
	r.use(kernelOf(1))
	if len(r.kernels) != maxKernels || r.kernels[1] != first {
		t.Errorf("%d kernels; the first one is second: %v", len(r.kernels), r.kernels[1] == first)
	}
	r.use(kernelOf(maxKnown - 2))
	if len(r.kernels) != 3 {
		t.Errorf("%d kernels, want three that fit", len(r.kernels))
	}
	r.use(kernelOf(maxKnown + 1))
	if len(r.kernels) != 0 {
		t.Errorf("%d kernels, want none", len(r.kernels))
	}
}
