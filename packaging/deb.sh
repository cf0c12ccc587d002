#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# deb.sh build|check|test: Debian packages of this tree, built and tried in a Debian 12 of
# which nothing but packages is known and that has no network. What it makes is in build/deb.
set -eu
umask 022
cd "$(dirname "$0")/.."

suite=bookworm
build_packages="build-essential clang debhelper dh-dkms libbpf-dev lintian llvm"
# Headers of two kernels, neither of which runs.
test_packages="dkms linux-headers-amd64 linux-headers-cloud-amd64 openssl libvirt-daemon-system libvirt-clients systemd man-db"
# No build or test takes longer, unless it hangs.
limit=3600

out=$PWD/build/deb
version=$(cat VERSION)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

[ "$(id -u)" = 0 ] || {
	echo "error: the packages are built in a root directory of their own: run this as root or with sudo" >&2
	exit 1
}

# pack TARBALL [TAR-ARGUMENT...]: the same files make the same bytes.
pack() {
	tarball=$1
	shift
	tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
		--xz --create --file "$tarball" "$@"
}

# source_tree DIR: what dpkg-source takes, into DIR. Only this may need a network, for Go's modules.
source_tree() {
	rm -rf "$1"
	mkdir -p "$1/frail-$version"
	# A source package has no binaries: the BPF objects are compiled, and no test reads a .elf there.
	git ls-files -z --cached --others --exclude-standard -- . ':!packaging/debian' \
		':!bpf/*_bpfel.o' ':!*.elf' | pack "$1/frail_$version.orig.tar.xz" \
		--null --files-from=- --transform="s,^,frail-$version/,"
	go mod vendor -o "$1/frail-$version/vendor"
	pack "$1/frail_$version.orig-vendor.tar.xz" -C "$1/frail-$version" vendor
	tar --extract --file "$1/frail_$version.orig.tar.xz" -C "$1"
	cp -r packaging/debian "$1/frail-$version/debian"
}

# inside ROOT DIR COMMAND...: runs a command in a copy of ROOT that is gone afterwards, with DIR
# as /mnt and Go where it is outside, without a network.
inside() {
	timeout "$limit" unshare --mount --net --pid --fork --kill-child sh -euc '
		root=$1 dir=$2 goroot=$3
		shift 3
		mount --make-rprivate /
		mount -t tmpfs tmpfs /tmp
		mkdir /tmp/upper /tmp/work /tmp/root
		mount -t overlay -o lowerdir="$root",upperdir=/tmp/upper,workdir=/tmp/work overlay /tmp/root
		mount -t proc proc /tmp/root/proc
		mount --bind "$dir" /tmp/root/mnt
		mkdir -p "/tmp/root$goroot"
		mount --bind -o ro "$goroot" "/tmp/root$goroot"
		exec chroot /tmp/root env --ignore-environment HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
			PATH="/usr/sbin:/usr/bin:/sbin:/bin:$goroot/bin" SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" "$@"
	' sh "$1" "$2" "$(go env GOROOT)" sh -euc "$3" </dev/null
}

# build DIR SUBDIR: the packages, into DIR/SUBDIR, which what is built sees as /mnt/SUBDIR.
build() {
	root=$(go run ./lab/cmd/lab debian deb-build $suite $build_packages)
	source_tree "$1/$2"
	inside "$root" "$1" "cd '/mnt/$2/frail-$version' && dpkg-buildpackage --no-sign" >"$1/$2/build.log" 2>&1 || {
		tail -n 40 "$1/$2/build.log" >&2
		echo "error: building the packages failed: $1/$2/build.log has all of it" >&2
		exit 1
	}
	rm -rf "$1/$2/frail-$version"
}

case ${1:-} in
build)
	build "${out%/*}" deb
	ls "$out"/*.deb
	;;
check)
	build "${out%/*}" deb
	build "$out/again" elsewhere
	for file in "$out"/*.deb "$out"/*.dsc "$out"/*.tar.xz; do
		cmp "$file" "$out/again/elsewhere/${file##*/}"
	done
	rm -rf "$out/again"
	root=$(go run ./lab/cmd/lab debian deb-build $suite $build_packages)
	inside "$root" "$out" "lintian --allow-root --no-cfg --display-info --show-overrides --fail-on error,warning,info /mnt/*.changes"
	echo "deb-check: two builds are equal, and lintian has nothing to say"
	;;
test)
	build "${out%/*}" deb
	root=$(go run ./lab/cmd/lab debian deb-test $suite $test_packages)
	cp packaging/deb-test.sh "$out/"
	inside "$root" "$out" "sh /mnt/deb-test.sh $version"
	;;
*)
	echo "usage: deb.sh build|check|test" >&2
	exit 1
	;;
esac
