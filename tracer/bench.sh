#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints the figures of the sequence analysis: time in the kernel for each call, memory,
# capturing, streaming, and what is detected in the public data sets, where they are
# (FRAIL_DATA). Needs root for BPF.
set -eu
cd "$(dirname "$0")/.."
exec go test -tags libvirt_dlopen -run '^$' -bench \
	'^Benchmark(Call|Memory|Reference|Write|Stream|Detection)$' -benchtime 1x \
	./tracer/ph ./tracer/sequence ./tracer/capture ./cmd/frail
