#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# rpm.sh build|check|test: packages for Fedora and RHEL of this tree, built in a Debian 12 that has
# no network with Debian's rpmbuild, looked at with rpmlint, and tried in a Debian 12, where rpm runs
# their scripts. What it makes is in build/rpm.
set -eu
cd "$(dirname "$0")/.."
. packaging/common.sh

suite=bookworm
build_packages="build-essential clang libbpf-dev llvm rpm rpmlint"
test_packages="dkms linux-headers-amd64 linux-headers-cloud-amd64 openssl rpm systemd"

out=$PWD/build/rpm

# build SUBDIR VERSION: the packages, into build/SUBDIR. Their names of what they need to be built
# are Fedora's, which Debian's rpm does not know.
build() {
	root=$(go run ./lab/cmd/lab debian rpm-build $suite $build_packages)
	source_tree "build/$1" "$2"
	rm -rf "$tree"
	cp packaging/rpm/frail.spec "build/$1/"
	inside "$root" "$PWD/build" "GOCACHE=/mnt/go-cache rpmbuild -ba --nodeps --define 'frail_version $2' \
		--define '_topdir /tmp/rpm' --define '_sourcedir /mnt/$1' --define '_srcrpmdir /mnt/$1' --define '_rpmdir /mnt/$1' \
		--define '_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' --define '_buildhost frail' \
		--define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' \
		/mnt/$1/frail.spec" >"build/$1/build.log" 2>&1 || {
		tail -n 40 "build/$1/build.log" >&2
		echo "error: building the packages failed: build/$1/build.log has all of it" >&2
		exit 1
	}
}

case ${1:-} in
build)
	build rpm "$version"
	ls "$out"/*.rpm
	;;
check)
	build rpm "$version"
	build rpm-again "$version"
	for file in "$out"/*.rpm; do
		cmp "$file" "build/rpm-again/${file##*/}"
	done
	rm -rf build/rpm-again
	root=$(go run ./lab/cmd/lab debian rpm-build $suite $build_packages)
	cp packaging/rpm/rpmlint.toml "$out/"
	inside "$root" "$out" "rpmlint --strict --config /mnt/rpmlint.toml /mnt/frail.spec /mnt/*.rpm"
	echo "rpm-check: two builds are equal, and rpmlint has nothing to say"
	;;
test)
	build rpm "$version"
	build rpm-next "$next"
	root=$(go run ./lab/cmd/lab debian rpm-test $suite $test_packages)
	rm -rf "$out/next"
	mkdir "$out/next"
	cp build/rpm-next/*.x86_64.rpm build/rpm-next/*.noarch.rpm "$out/next/"
	cp packaging/rpm-test.sh "$out/"
	inside "$root" "$out" "sh /mnt/rpm-test.sh $version $next"
	;;
*)
	echo "usage: rpm.sh build|check|test" >&2
	exit 1
	;;
esac
