#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what "make lab-files" left in /frail/lab on the lab's host, as a user
# would: files where the units expect them, the module known to modprobe,
# fraild enabled and started.
set -eu
cp -r --no-preserve=ownership,timestamps /frail/lab/root/usr /frail/lab/root/etc /
depmod
systemctl daemon-reload
# libvirt looks for hooks when it starts.
systemctl restart libvirtd
systemctl enable --quiet --now frail-module.service fraild.service
