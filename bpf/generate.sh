#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles the BPF programs and writes their Go bindings into the directory $1
# (default: this one). Run by go generate; the same input gives the same bytes.
set -eu

out=${1:-.}

# clang -target bpf does not look where Debian keeps asm/types.h.
arch=$(gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)

# generate STEM TYPE...: STEM.bpf.c and the types that Go shares with it.
generate() {
	stem=$1
	shift
	flags=
	for t in "$@"; do
		flags="$flags -type $t"
	done

	# shellcheck disable=SC2086
	GOPACKAGE=bpf go tool bpf2go -target amd64 -output-dir "$out" -output-stem "$stem" \
		-no-global-types $flags "$stem" "$stem.bpf.c" -- \
		-O2 -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/"$arch"

	# bpf2go has no option for a licence header.
	sed -i '1i // SPDX-License-Identifier: Apache-2.0\n' "$out/${stem}_x86_bpfel.go"
}

generate trace frail_event frail_event_args frail_arm frail_layout frail_status frail_limits frail_event_kind \
	frail_insn frail_entry frail_event_flags frail_exits frail_refusal frail_ioctl frail_loss frail_filter \
	frail_process frail_process_flags frail_read frail_reads frail_data_spec frail_data frail_piece \
	frail_read_kind frail_piece_flags frail_data_room frail_gap frail_gap_event frail_table frail_match \
	frail_exe_prefix frail_group_prefix
generate ph frail_ph_event_flags frail_ph_flags frail_ph_control frail_ph_counter frail_ph_clock frail_ph_known_by \
	frail_ph_vm frail_ph_executable frail_ph_profile frail_ph_row \
	frail_ph_thread_key frail_ph_moment frail_ph_thread frail_ph_space_key \
	frail_ph_fork frail_ph_record
generate record frail_record_slot frail_record_limits
