/* SPDX-License-Identifier: GPL-2.0 */
/* Names of guest threads, in BPF programs. */
#ifndef FRAIL_COMM_H
#define FRAIL_COMM_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* The bytes of @word before its first NUL; without one, @mask is left as it is. */
static __always_inline __u64 before_nul(__u64 word, __u64 *mask)
{
	/* The lowest byte with its high bit set here is the first zero. */
	__u64 zero = (word - 0x0101010101010101ULL) & ~word & 0x8080808080808080ULL;

	word &= *mask;
	if (zero) {
		word &= (zero & -zero) - 1;
		*mask = 0;
	}
	return word;
}

/* The guest wrote the name: what follows its NUL is not part of it. */
static __always_inline void pad_comm(__u64 *low, __u64 *high)
{
	__u64 mask = ~0ULL;

	*low = before_nul(*low, &mask);
	*high = before_nul(*high, &mask);
}

#endif
