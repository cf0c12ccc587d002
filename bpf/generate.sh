#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles trace.bpf.c and writes its Go bindings into the directory $1
# (default: this one). Run by go generate; the same input gives the same bytes.
set -eu

out=${1:-.}
stem=trace

types='frail_event frail_arm frail_layout frail_status frail_event_kind
frail_insn frail_event_flags frail_exits frail_ioctl frail_loss frail_filter
frail_gap frail_gap_event frail_table frail_match'

flags=
for t in $types; do
	flags="$flags -type $t"
done

# clang -target bpf does not look where Debian keeps asm/types.h.
arch=$(gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)

# shellcheck disable=SC2086
GOPACKAGE=bpf go tool bpf2go -target amd64 -output-dir "$out" -output-stem $stem \
	-no-global-types $flags trace trace.bpf.c -- \
	-O2 -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/"$arch"

# bpf2go has no option for a licence header.
sed -i '1i // SPDX-License-Identifier: Apache-2.0\n' "$out/${stem}_x86_bpfel.go"
