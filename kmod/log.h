/* SPDX-License-Identifier: GPL-2.0 */
/* The prefix of every message; included before anything else in each file. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
