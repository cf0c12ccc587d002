#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# deb.sh build|check|test [SUITE]|repo HOST: Debian packages of this tree, built in a Debian 12 of
# which nothing but packages is known and that has no network, and tried there or in a SUITE.
# What it makes is in build/deb; repo leaves what the lab's HOST installs from in
# build/hosts/HOST/repo.
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
# What the lab upgrades to.
next=$version.1
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

# source_tree DIR VERSION: what dpkg-source takes, into DIR. Only this may need a network, for
# Go's modules.
source_tree() {
	tree=$1/frail-$2
	rm -rf "$1"
	mkdir -p "$tree"
	# A source package has no binaries: the BPF objects are compiled, and no test reads a .elf there.
	git ls-files -z --cached --others --exclude-standard -- . ':!packaging/debian' ':!bpf/*_bpfel.o' ':!*.elf' |
		tar --create --null --files-from=- | tar --extract --directory "$tree"
	echo "$2" >"$tree/VERSION"
	pack "$1/frail_$2.orig.tar.xz" -C "$1" "frail-$2"
	go mod vendor -o "$tree/vendor"
	pack "$1/frail_$2.orig-vendor.tar.xz" -C "$tree" vendor
	cp -r packaging/debian "$tree/debian"
	[ "$2" = "$version" ] || sed "1s/($version-/($2-/" packaging/debian/changelog >"$tree/debian/changelog"
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

# build DIR SUBDIR VERSION [GOCACHE]: the packages, into DIR/SUBDIR, which what is built sees as
# /mnt/SUBDIR. GOCACHE, in there, is where Go keeps what it compiled, if that is kept.
build() {
	root=$(go run ./lab/cmd/lab debian deb-build $suite $build_packages)
	source_tree "$1/$2" "$3"
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
	build "${out%/*}" deb "$version" /mnt/deb-cache
	ls "$out"/*.deb
	;;
check)
	# The first with what earlier builds left, the second without.
	build "${out%/*}" deb "$version" /mnt/deb-cache
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
	build "${out%/*}" deb "$version" /mnt/deb-cache
	root=$(go run ./lab/cmd/lab debian "deb-test-${2:-$suite}" "${2:-$suite}" $test_packages)
	cp packaging/deb-test.sh "$out/"
	inside "$root" "$out" "sh /mnt/deb-test.sh $version"
	;;
repo)
	build "${out%/*}" deb "$version" /mnt/deb-cache
	build "${out%/*}" deb-next "$next" /mnt/deb-cache
	repo=build/hosts/$2/repo
	rm -rf "$repo"
	mkdir -p "$repo/this" "$repo/next"
	cp "$out"/*.deb "$repo/this/"
	cp "$out-next"/*.deb "$repo/next/"
	host=$(go run ./lab/cmd/lab --host "$2" host-image)
	fetch "$host/root" "$repo/debian" "$PWD/$repo"/this/*.deb
	root=$(go run ./lab/cmd/lab debian deb-build $suite $build_packages)
	inside "$root" "$PWD/$repo" 'cd /mnt; for dir in this next debian; do (cd $dir && dpkg-scanpackages --multiversion . >Packages 2>/dev/null); done'
	;;
*)
	echo "usage: deb.sh build|check|test [SUITE]|repo HOST" >&2
	exit 1
	;;
esac
