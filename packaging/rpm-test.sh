#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# rpm-test.sh VERSION NEXT: what rpm.sh runs in a fresh Debian that has the packages in /mnt and those
# of a later version in /mnt/next. rpm installs, upgrades and erases them, which runs their scripts with
# Debian's DKMS and systemctl. Dependencies are Fedora's names, so rpm is told to leave them out; nothing
# is booted, and SELinux is off.
set -eu
version=$1
next=$2
packages="frail fraild frail-dkms frail-libvirt-hook"

fail() {
	echo "error: $*" >&2
	exit 1
}

# quiet COMMAND...: what it printed, if it fails or a script of a package does.
quiet() {
	"$@" >/tmp/quiet 2>&1 && ! grep -q 'scriptlet failed' /tmp/quiet || {
		cat /tmp/quiet >&2
		fail "$* failed"
	}
}

# built VERSION: DKMS has the module of this version, and no other, for all kernels.
built() {
	for kernel in $kernels; do
		[ "$(modinfo --set-version "$kernel" --field version frail)" = "$1" ] || fail "$kernel has frail.ko $(modinfo --set-version "$kernel" --field version frail), not $1"
	done
	[ "$(dkms status frail | cut -d , -f 1 | sort -u)" = "frail/$1" ] || fail "DKMS has: $(dkms status frail)"
}

rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap
kernels=$(cd /lib/modules && ls -d [6-9].*)
mkdir -p /etc/systemd/system-preset
# As an administrator of Fedora would, for units that nobody enables by default.
printf 'enable fraild.service\nenable frail-module.service\n' >/etc/systemd/system-preset/10-frail.preset

echo "# install"
quiet rpm --install --nodeps /mnt/*.x86_64.rpm /mnt/*.noarch.rpm
for package in $packages; do
	[ "$(rpm --query --queryformat '%{version}' $package)" = "$version" ] || fail "$package is not installed in version $version"
done
# shellcheck disable=SC2086
rpm --verify --nodeps $packages || fail "rpm --verify"
built "$version"
[ "$(frail version)" = "frail $version" ] || fail "frail version: $(frail version)"
[ "$(fraild --version)" = "fraild $version" ] || fail "fraild --version: $(fraild --version)"
getent group frail >/dev/null || fail "there is no group frail"
for unit in fraild frail-module; do
	systemctl is-enabled --quiet $unit.service || fail "$unit.service is not enabled"
done
hook=/etc/libvirt/hooks/qemu.d/frail
echo '<domain/>' | $hook guest started begin - || fail "the hook fails"

echo "# upgrade"
echo '# changed' >>/etc/frail/frail.toml
quiet rpm --upgrade --nodeps /mnt/next/*.rpm
built "$next"
tail -n 1 /etc/frail/frail.toml | grep -qx '# changed' || fail "the upgrade took the configuration"
systemctl is-enabled --quiet fraild.service || fail "the upgrade disabled fraild"

echo "# erase"
mkdir -p /var/lib/frail/layouts
# shellcheck disable=SC2086
quiet rpm --erase --nodeps $packages
left=$(find / -xdev \( -path /mnt -o -path /proc -o -path /tmp \) -prune -o -name '*frail*' -print | sort)
kept="/etc/frail
/etc/frail/frail.toml.rpmsave
/etc/systemd/system-preset/10-frail.preset
/var/lib/frail"
[ "$left" = "$kept" ] || fail "erasing left: $left"
echo "rpm-test: installed, upgraded and erased frail $version, with the module for $(echo "$kernels" | wc -l) kernels"
