#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs the Debian packages that building, testing and the lab need and that
# are missing. Does nothing, quickly, when all are there.
set -eu

packages="
	bash-completion bpftool clang cpio e2fsprogs groff-base libbpf-dev libc6-dev libvirt-clients libvirt-daemon-system
	linux-headers-amd64 mmdebstrap protobuf-compiler qemu-system-x86 sparse
	xz-utils zstd busybox-static strace"

missing=
for p in $packages; do
	case $(dpkg-query --show --showformat='${db:Status-Abbrev}' "$p" 2>/dev/null || :) in
	ii*) ;;
	*) missing="$missing $p" ;;
	esac
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || {
		echo "error: these packages are missing and installing them needs root:$missing" >&2
		exit 1
	}
	sudo=sudo
fi
echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get -qq update
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $missing >/dev/null
