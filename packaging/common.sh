# SPDX-License-Identifier: Apache-2.0
#
# What deb.sh and rpm.sh have in common. They run it in the repository's directory.
umask 022

# No build or test takes longer, unless it hangs.
limit=3600

version=$(cat VERSION)
# What is upgraded to in tests.
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

# source_tree DIR VERSION: what a package's source is, DIR/frail-VERSION with Go's modules in
# vendor, and tarballs of both. Only this may need a network, for the modules.
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
