#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# deb.sh build|check|test [SUITE]|repo HOST [next]|firmware HOST: Debian packages of this tree, built in a Debian 12 of
# which nothing but packages is known and that has no network, and tried there or in a SUITE.
# What it makes is in build/deb; repo leaves what the lab's HOST installs from in
# build/hosts/HOST/repo, with packages of the next version too if asked to; firmware
# leaves in build/hosts/HOST/signing a key, and UEFI firmware that has its certificate.
set -eu
cd "$(dirname "$0")/.."
. packaging/common.sh

suite=bookworm
build_packages="build-essential clang debhelper dh-dkms libbpf-dev lintian llvm"
# Headers of two kernels, neither of which runs.
test_packages="dkms linux-headers-amd64 linux-headers-cloud-amd64 openssl libvirt-daemon-system libvirt-clients systemd man-db"

out=$PWD/build/deb

# build DIR SUBDIR VERSION [GOCACHE]: the packages, into DIR/SUBDIR, which what is built sees as
# /mnt/SUBDIR. GOCACHE, in there, is where Go keeps what it compiled, if that is kept.
build() {
	root=$(go run ./lab/cmd/lab debian deb-build $suite $build_packages)
	source_tree "$1/$2" "$3"
	cp -r packaging/debian "$tree/debian"
	[ "$3" = "$version" ] || sed "1s/($version-/($3-/" packaging/debian/changelog >"$tree/debian/changelog"
	inside "$root" "$1" "cd '/mnt/$2/frail-$3' && env ${4:+GOCACHE='$4'} dpkg-buildpackage --no-sign" >"$1/$2/build.log" 2>&1 || {
		tail -n 40 "$1/$2/build.log" >&2
		echo "error: building the packages failed: $1/$2/build.log has all of it" >&2
		exit 1
	}
	rm -rf "$1/$2/frail-$3"
}

# fetch ROOT DIR DEB...: the packages that DEBs depend on or recommend and the Debian in ROOT has
# not, into DIR.
fetch() {
	root=$1 dir=$2
	shift 2
	work=$(mktemp -d)
	mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$dir"
	for command in update "install --yes --download-only $*"; do
		# shellcheck disable=SC2086
		apt-get -qq -o Dir::State="$work/state" -o Dir::State::status="$root/var/lib/dpkg/status" -o Dir::Cache="$work/cache" \
			-o Dir::Etc::SourceList="$root/etc/apt/sources.list" -o Dir::Etc::SourceParts=- -o APT::Sandbox::User=root $command >&2
	done
	find "$work/cache/archives" -name '*.deb' -exec mv -t "$dir" {} +
	rm -rf "$work"
}

case ${1:-} in
build)
	build "${out%/*}" deb "$version" /mnt/go-cache
	ls "$out"/*.deb
	;;
check)
	# The first with what earlier builds left, the second without.
	build "${out%/*}" deb "$version" /mnt/go-cache
	build "$out/again" elsewhere "$version"
	for file in "$out"/*.deb "$out"/*.dsc "$out"/*.tar.xz; do
		cmp "$file" "$out/again/elsewhere/${file##*/}"
	done
	rm -rf "$out/again"
	root=$(go run ./lab/cmd/lab debian deb-build $suite $build_packages)
	inside "$root" "$out" "lintian --allow-root --no-cfg --display-info --show-overrides --fail-on error,warning,info /mnt/*.changes"
	echo "deb-check: two builds are equal, and lintian has nothing to say"
	;;
test)
	build "${out%/*}" deb "$version" /mnt/go-cache
	root=$(go run ./lab/cmd/lab debian "deb-test-${2:-$suite}" "${2:-$suite}" $test_packages)
	cp packaging/deb-test.sh "$out/"
	inside "$root" "$out" "sh /mnt/deb-test.sh $version"
	;;
repo)
	build "${out%/*}" deb "$version" /mnt/go-cache
	repo=build/hosts/$2/repo
	rm -rf "$repo"
	mkdir -p "$repo/this"
	cp "$out"/*.deb "$repo/this/"
	if [ "${3:-}" = next ]; then
		build "${out%/*}" deb-next "$next" /mnt/go-cache
		mkdir "$repo/next"
		cp "$out-next"/*.deb "$repo/next/"
	fi
	host=$(go run ./lab/cmd/lab --host "$2" host-image)
	fetch "$host/root" "$repo/debian" "$PWD/$repo"/this/*.deb
	root=$(go run ./lab/cmd/lab debian deb-build $suite $build_packages)
	inside "$root" "$PWD/$repo" 'cd /mnt; for dir in *; do (cd $dir && dpkg-scanpackages --multiversion . >Packages 2>/dev/null); done'
	;;
firmware)
	signing=$PWD/build/hosts/$2/signing
	mkdir -p "$signing"
	root=$(go run ./lab/cmd/lab debian firmware trixie openssl ovmf python3-virt-firmware)
	inside "$root" "$signing" "cd /mnt
		openssl req -new -x509 -newkey rsa:2048 -nodes -days 3650 -subj '/CN=a key of the firmware/' -keyout mok.key -outform DER -out mok.pub
		openssl x509 -inform DER -in mok.pub -out mok.pem
		cp /usr/share/OVMF/OVMF_CODE_4M.fd code.fd
		virt-fw-vars --input /usr/share/OVMF/OVMF_VARS_4M.fd --output vars.fd --add-db \$(cat /proc/sys/kernel/random/uuid) mok.pem" >/dev/null 2>"$signing/log" || {
		cat "$signing/log" >&2
		exit 1
	}
	;;
*)
	echo "usage: deb.sh build|check|test [SUITE]|repo HOST [next]|firmware HOST" >&2
	exit 1
	;;
esac
