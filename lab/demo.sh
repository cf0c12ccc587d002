#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What "make demo" runs on the lab's host, which has nothing of Frail: the packages are
# installed, an enabled guest is started with virsh, and its system calls are shown as they
# happen.
set -eu
say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }

say "apt install ./*.deb"
/frail/lab/repo.sh
export DEBIAN_FRONTEND=noninteractive
apt-get --quiet --quiet --yes install /frail/repo/this/*.deb >/tmp/install 2>&1 || {
	cat /tmp/install >&2
	exit 1
}
dpkg-query --show 'frail*'

say "frail doctor"
frail doctor

say "a guest whose libvirt XML asks for tracing"
/frail/lab/lab-guest define --trace demo
virsh metadata demo urn:frail:domain:1.0
virsh start demo
/frail/lab/lab-guest wait demo

say "frail list"
frail list

say "programs in the guest, and their system calls on the host: frail trace demo --filter-syscall '!poll,read'"
# Without those by which the guest's init reads its commands.
frail trace demo --filter-syscall '!poll,read' --ready-file /run/demo.ready &
trace=$!
until [ -e /run/demo.ready ]; do kill -0 $trace; done
# t-32 ends with status 32.
/frail/lab/lab-guest run demo t-opens t-forks t-32 >/run/demo.output || test $? = 32
kill -INT $trace
wait $trace

say "what the guest itself said"
cat /run/demo.output

say "virsh destroy: nothing of Frail is in the way"
virsh destroy demo
virsh undefine demo
