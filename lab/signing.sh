#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# signing.sh: what "make lab-signing" runs on a host that takes signed modules only, and whose
# firmware knows the key in /frail/signing. The packages are installed as docs/installing.md says.
set -eu
export DEBIAN_FRONTEND=noninteractive

say() { echo; echo "# $*"; }

fail() {
	echo "error: $*" >&2
	exit 1
}

# doctor STATUS TEXT: frail doctor ends with this status, and says this of the signature.
doctor() {
	status=0
	frail doctor >/tmp/doctor 2>&1 || status=$?
	grep -A 1 "frail.ko's signature" /tmp/doctor || :
	[ $status = "$1" ] || fail "frail doctor: exit status $status, not $1: $(cat /tmp/doctor)"
	grep "frail.ko's signature" /tmp/doctor | grep -q "$2" || fail "frail doctor does not say \"$2\": $(cat /tmp/doctor)"
}

# refused ERROR: modprobe frail fails with this error.
refused() {
	! modprobe frail 2>/tmp/modprobe || fail "the module was loaded"
	cat /tmp/modprobe
	grep -q "$1" /tmp/modprobe || fail "modprobe does not say \"$1\""
	[ ! -e /sys/module/frail ] || fail "the module is loaded"
}

[ "$(cat /sys/module/module/parameters/sig_enforce)" = Y ] || fail "this host takes modules without a signature"
/frail/lab/repo.sh

say "signed by DKMS with a key that the firmware does not know"
apt-get --quiet --quiet --yes install /frail/repo/this/*.deb >/tmp/install 2>&1 || {
	cat /tmp/install >&2
	fail "the packages are not installed"
}
module=$(modinfo --field filename frail)
[ "$(modinfo --field sig_key frail)" != "" ] || fail "DKMS did not sign $module"
refused "Key was rejected by service"
doctor 1 "rejected"

say "not signed"
# Behind the signature nothing may be.
case $module in
*.xz) xz --decompress --keep --stdout "$module" >/tmp/frail.ko; echo x >>/tmp/frail.ko; xz --check=crc32 --stdout /tmp/frail.ko >"$module" ;;
*) echo x >>"$module" ;;
esac
refused "Key was rejected by service"
doctor 1 "not signed"

say "signed with a key that the firmware knows (docs/installing.md)"
version=$(modinfo --field version frail)
printf 'mok_signing_key=%s\nmok_certificate=%s\n' /frail/signing/mok.key /frail/signing/mok.pub >>/etc/dkms/framework.conf
dkms build --force "frail/$version" -k "$(uname -r)" >/tmp/dkms 2>&1 || fail "$(cat /tmp/dkms)"
dkms install --force "frail/$version" -k "$(uname -r)" >/tmp/dkms 2>&1 || fail "$(cat /tmp/dkms)"
systemctl start frail-module fraild
doctor 0 "took this one"

say "and it traces"
/frail/lab/lab-guest start signed
frail enable signed --live
for _ in $(seq 60); do
	# A guest that sleeps makes no system call to be found by.
	/frail/lab/lab-guest run signed t-opens >/dev/null
	! frail list | grep -q ' signed .* traced$' || break
	sleep 1
done
frail list
frail list | grep -q ' signed .* traced$' || fail "the guest is not traced"
! dmesg --kernel | grep -E 'WARNING|BUG:|Oops|Call Trace' || fail "the kernel warned"
