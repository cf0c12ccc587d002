#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Lets apt of the lab's host, which has no network, install from the packages in /frail/repo: Frail's
# and what they need. With documents and manual pages, which the image goes without.
set -eu
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
echo "deb [trusted=yes] file:/frail/repo/debian ./" >/etc/apt/sources.list
apt-get --quiet --quiet update
rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap
