#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# packages.sh: what "make lab-packages" runs on the lab's host, which has nothing of Frail. Frail is
# installed by the commands that docs/installing.md has, from the packages in /frail/repo; what the
# documents say to do is done, with a guest; then it is upgraded and removed under running guests.
set -eu
docs=/frail/docs
# What the documents call the packages' directory.
cd /root
mkdir -p build
export DEBIAN_FRONTEND=noninteractive

say() { echo; echo "# $*"; }

fail() {
	echo "error: $*" >&2
	exit 1
}

# logged COMMAND...: shows its output only if it fails.
logged() {
	"$@" >/tmp/logged 2>&1 || {
		cat /tmp/logged >&2
		fail "$* failed"
	}
}

# commands PAGE [SECTION]: the commands in a page's indented blocks, at a prompt or without one.
commands() {
	awk -v section="${2:-}" '
		/^#/ { here = $0; sub(/^#+ /, "", here) }
		(section == "" || here == section) &&
		/^    ([#$] )?(apt|bpftrace|curl|dkms|frail|mokutil|qemu-system-x86_64|systemctl|virsh) / {
			sub(/^    ([#$] )?/, ""); print
		}' "$docs/$1"
}

# section PAGE SECTION DOMAIN: runs a section's commands with this domain. What does not end by itself
# is interrupted.
section() {
	commands "$1" "$2" >/tmp/commands
	[ -s /tmp/commands ] || fail "$1 has no commands in $2"
	while read -r line <&9; do
		try 0 "$(echo "$line" | sed "s/^apt /apt-get --quiet --quiet --yes -o Dpkg::Options::=--force-confold /; s/DOMAIN/$3/g")"
	done 9</tmp/commands
}

# try STATUS COMMAND: runs a line of shell, which has to end with this status.
try() {
	echo "\$ $2"
	status=0
	timeout --signal INT --kill-after 60 --preserve-status 1200 sh -c "$2" >/tmp/try 2>&1 </dev/null &
	pid=$!
	case "$2" in
	*"frail trace "* | bpftrace*)
		sleep 30
		kill -INT $pid 2>/dev/null || :
		;;
	esac
	wait $pid || status=$?
	[ $status = "$1" ] || {
		cat /tmp/try >&2
		fail "$2: exit status $status, not $1"
	}
}

# sees DOMAIN: its calls are traced, with the name of the process.
sees() {
	rm -f /run/packages.ready
	frail trace "$1" --filter-syscall openat --ready-file /run/packages.ready >/tmp/trace 2>&1 &
	trace=$!
	until [ -e /run/packages.ready ]; do
		kill -0 $trace 2>/dev/null || fail "frail trace $1: $(cat /tmp/trace)"
		sleep 0.2
	done
	/frail/lab/lab-guest run "$1" t-opens >/dev/null
	kill -INT $trace
	wait $trace || fail "frail trace $1: $(cat /tmp/trace)"
	grep -q '^t-opens\[[0-9]*/[0-9]*\] .*openat' /tmp/trace || fail "frail trace $1 shows no openat of t-opens: $(cat /tmp/trace)"
	grep -q ' 0 events lost' /tmp/trace || fail "frail trace $1 lost events: $(tail -n 1 /tmp/trace)"
}

# becomes DOMAIN STATE: waits until frail list shows it.
becomes() {
	for _ in $(seq 300); do
		! frail list 2>/dev/null | grep -Eq " $1 .* $2\$" || return 0
		sleep 1
	done
	fail "$1 does not become $2: $(frail list 2>&1)"
}

qemu_of() { cat "/run/libvirt/qemu/$1.pid"; }

logged /frail/lab/repo.sh
[ -z "$(find /etc /usr /var -xdev -name 'frail*' ! -name 'frail-lab*')" ] || fail "this host has something of Frail"
/frail/lab/lab-guest start other
version=$(dpkg-deb --field /frail/repo/this/frail_*.deb Version | sed 's/-.*//')
next=$(dpkg-deb --field /frail/repo/next/frail_*.deb Version | sed 's/-.*//')

say "install (docs/installing.md)"
ln -sfn /frail/repo/this build/deb
section installing.md Install -
cat /tmp/try
[ "$(cat /sys/module/frail/version)" = "$version" ] || fail "the module that is loaded is not $version"
for unit in frail-module fraild; do
	systemctl is-active --quiet $unit || fail "$unit is not active"
	systemctl is-enabled --quiet $unit || fail "$unit is not enabled"
done
for page in "1 frail" "1 frail-trace" "5 frail.toml" "8 fraild" "8 frail-libvirt-hook"; do
	file=/usr/share/man/man${page% *}/${page#* }.${page% *}.gz
	[ -s "$file" ] || fail "there is no $file"
done
for file in bash-completion/completions/frail zsh/vendor-completions/_frail fish/vendor_completions.d/frail.fish; do
	[ -s /usr/share/$file ] || fail "there is no /usr/share/$file"
done

say "ask for a domain (docs/installing.md): one that ran before Frail was there, and one that starts"
section installing.md "Ask for a domain" other
becomes other traced
sees other
/frail/lab/lab-guest define guest1
virsh metadata guest1 urn:frail:domain:1.0 --key frail --config --set '<frail><trace/></frail>' >/dev/null
virsh start guest1
/frail/lab/lab-guest wait guest1
becomes guest1 traced
sees guest1
frail list

say "who may: a member of the group frail, and nobody else"
useradd --groups frail member
useradd stranger
for command in list "ps guest1" alerts "trace guest1 --filter-syscall getpid"; do
	try 0 "setpriv --reuid member --regid member --init-groups frail $command"
	try 3 "setpriv --reuid stranger --regid stranger --init-groups frail $command"
	grep -q 'no permission to use .*join the group' /tmp/try || fail "frail $command tells a stranger: $(cat /tmp/try)"
done

say "the commands of README.md and docs/operating.md"
/usr/bin/qemu-system-x86_64 -qmp unix:/run/vm.qmp,server=on,wait=off -machine q35,accel=kvm -cpu host -m 256 -display none \
	-serial null -kernel /frail/guest/vmlinuz -initrd /frail/guest/initramfs.cpio.gz &
qemu=$!
for page in ../README.md operating.md; do
	commands $page >/tmp/commands
	while read -r line <&8; do
		case $line in
		# Started above with what "..." stands for.
		qemu-system-x86_64*) continue ;;
		esac
		# [--live] may be left out; one "frail disable" takes off what the next one needs.
		try 0 "$(echo "$line" | sed 's/DOMAIN\|web1/guest1/g; s/^frail trace demo/frail trace guest1/; s/ \[[^]]*\]//g')"
		case $line in "frail disable"*) try 0 "frail enable guest1" ;; esac
	done 8</tmp/commands
done
kill $qemu
becomes guest1 traced

say "upgrade to $next (docs/installing.md), with guests traced"
qemu=$(qemu_of guest1)
echo '# changed' >>/etc/frail/frail.toml
frail trace guest1 >/tmp/across 2>&1 &
across=$!
ln -sfn /frail/repo/next build/deb
section installing.md Upgrade -
[ "$(frail version)" = "frail $next" ] || fail "after the upgrade: $(frail version)"
[ "$(cat /sys/module/frail/version)" = "$next" ] || fail "the module that is loaded is not $next"
tail -n 1 /etc/frail/frail.toml | grep -qx '# changed' || fail "the upgrade took the configuration"
[ "$(qemu_of guest1)" = "$qemu" ] || fail "the upgrade ended guest1"
wait $across || :
echo "a trace that ran ended with: $(tail -n 1 /tmp/across)"
for domain in guest1 other; do
	becomes $domain traced
	sees $domain
done

say "downgrade to $version"
try 0 "apt-get --quiet --quiet --yes --allow-downgrades -o Dpkg::Options::=--force-confold install /frail/repo/this/*.deb"
[ "$(cat /sys/module/frail/version)" = "$version" ] || fail "the module that is loaded is not $version"
[ "$(qemu_of guest1)" = "$qemu" ] || fail "the downgrade ended guest1"
becomes guest1 traced
sees guest1

say "remove and purge (docs/installing.md), with guests traced"
section installing.md Remove -
[ ! -e /sys/module/frail ] || fail "the module is still loaded"
[ "$(qemu_of guest1)" = "$qemu" ] || fail "guest1 ended"
for domain in guest1 other; do
	/frail/lab/lab-guest run $domain t-opens >/dev/null || fail "$domain does not run on"
done
left=$(find / -xdev \( -path /root -o -path /tmp -o -path /var/log \) -prune -o -name '*frail*' ! -name 'frail-lab*' ! -path /frail -print)
[ -z "$left" ] || fail "purge left: $left"
getent group frail && fail "purge left the group"
[ -z "$(systemctl list-unit-files --no-legend 'frail*' | grep -v '^frail-lab')" ] || fail "purge left: $(systemctl list-unit-files 'frail*')"
! dmesg --kernel | grep -E 'WARNING|BUG:|Oops|Call Trace' || fail "the kernel warned"
say "installed, upgraded, downgraded and purged frail $version"
