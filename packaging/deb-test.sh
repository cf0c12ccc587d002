#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# deb-test.sh VERSION: what deb.sh runs in a fresh Debian that has the packages in /mnt. They are
# installed, looked at, removed and purged. Nothing is booted: units are enabled, not started.
set -eu
version=$1
packages="frail fraild frail-dkms frail-libvirt-hook"

fail() {
	echo "error: $*" >&2
	exit 1
}

# Every file and what is in those of /etc, but for what a restart clears, caches, logs, what package
# managers and depmod keep, and DKMS's own signing key.
files() {
	find / -xdev \( -path /mnt -o -path /tmp -o -path /proc -o -path /run -o -path /var/log -o -path /var/cache -o -path /var/lib/apt \
		-o -path /var/lib/dpkg -o -path '/lib/modules/*/modules.*' -o -path '/usr/lib/modules/*/modules.*' \
		-o -path '/var/lib/dkms/mok.*' -o -path '/etc/*-' \) -prune -o -print | sort
	find /etc -xdev -type f ! -name '*-' -exec sha256sum {} + | sort -k 2
}

# The root directory was made without documents and man pages; here they count.
rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap
# A kernel that is too old, with headers that would do.
mkdir /lib/modules/5.10.0-1-amd64
ln -s "$(readlink -f /lib/modules/6.*-cloud-amd64/build)" /lib/modules/5.10.0-1-amd64/build
kernels=$(cd /lib/modules && ls -d [6-9].*)
files >/tmp/before

echo "# install"
apt-get install --quiet --quiet --yes /mnt/*.deb >/tmp/install.log 2>&1 || {
	cat /tmp/install.log >&2
	fail "apt-get install failed"
}
for package in $packages; do
	[ "$(dpkg-query --show --showformat='${db:Status-Status} ${source:Upstream-Version}' $package)" = "installed $version" ] ||
		fail "$package is not installed in version $version"
done
# shellcheck disable=SC2086
changed=$(dpkg --verify $packages)
[ -z "$changed" ] || fail "dpkg --verify: $changed"

for kernel in $kernels; do
	module=/lib/modules/$kernel/updates/dkms/frail.ko
	[ "$(modinfo --field version "$module")" = "$version" ] || fail "$module is not version $version"
	case $(modinfo --field vermagic "$module") in
	"$kernel "*) ;;
	*) fail "$module is not for $kernel" ;;
	esac
	[ -n "$(modinfo --field signer "$module")" ] || fail "DKMS did not sign $module"
	modprobe --set-version "$kernel" --show-depends frail | grep -q updates/dkms/frail || fail "modprobe does not find frail for $kernel"
	echo "dkms: frail.ko $version for $kernel"
done
grep '/5.10.*BUILD_EXCLUSIVE' /tmp/install.log || fail "DKMS did not say why it leaves out 5.10"
[ -z "$(find /lib/modules/5.10.0-1-amd64/ -name 'frail*')" ] || fail "DKMS built for 5.10"

[ "$(frail version)" = "frail $version" ] || fail "frail version: $(frail version)"
[ "$(fraild --version)" = "fraild $version" ] || fail "fraild --version: $(fraild --version)"
# libvirt's library, which is loaded when it is needed, is there. libvirtd is not.
timeout 60 frail enable nobody --config >/tmp/enable.log 2>&1 && fail "frail enable needs no libvirt"
grep -q libvirt-sock /tmp/enable.log || fail "frail enable: $(cat /tmp/enable.log)"
getent group frail >/dev/null || fail "there is no group frail"
for unit in fraild frail-module; do
	systemctl is-enabled --quiet $unit.service || fail "$unit.service is not enabled"
done
systemd-analyze verify --man=no fraild.service frail-module.service 2>/tmp/verify.log || :
! grep -E '^(fraild|frail-module|/.*/(fraild|frail-module)\.service)' /tmp/verify.log || fail "systemd-analyze verify"
systemd-analyze security --offline=yes --threshold=40 --no-pager fraild.service >/tmp/security || fail "fraild.service: $(tail -n 1 /tmp/security)"
tail -n 1 /tmp/security
hook=/etc/libvirt/hooks/qemu.d/frail
echo '<domain/>' | $hook guest started begin - || fail "the hook fails"

echo "# install again, as an upgrade does"
apt-get install --quiet --quiet --yes --reinstall /mnt/*.deb >/tmp/install.log 2>&1 || {
	cat /tmp/install.log >&2
	fail "apt-get install --reinstall failed"
}
for kernel in $kernels; do
	dkms status frail -k "$kernel" | grep -q installed || fail "the module for $kernel is gone after an upgrade"
done

echo "# remove"
echo '#changed' >>/etc/frail/frail.toml
mkdir -p /var/lib/frail/layouts
# shellcheck disable=SC2086
apt-get remove --quiet --quiet --yes $packages >/tmp/remove.log 2>&1 || {
	cat /tmp/remove.log >&2
	fail "apt-get remove failed"
}
tail -n 1 /etc/frail/frail.toml | grep -qx '#changed' || fail "remove did not keep the configuration"
[ -d /var/lib/frail/layouts ] || fail "remove did not keep fraild's state"
[ -z "$(find /lib/modules /var/lib/dkms /usr/src -name 'frail*')" ] || fail "remove left of the module: $(find /lib/modules /var/lib/dkms /usr/src -name 'frail*')"
echo '<domain/>' | $hook guest started begin - || fail "the hook fails when its program is removed"

echo "# purge"
# shellcheck disable=SC2086
apt-get purge --quiet --quiet --yes $packages >/tmp/purge.log 2>&1 || {
	cat /tmp/purge.log >&2
	fail "apt-get purge failed"
}
files >/tmp/after
diff /tmp/before /tmp/after || fail "purge left (>) or took (<) these"
echo "deb-test: installed, verified, removed and purged frail $version, with the module for $(echo "$kernels" | wc -l) kernels"
