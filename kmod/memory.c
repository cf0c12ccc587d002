// SPDX-License-Identifier: GPL-2.0
/* Reading a guest's RAM where its kernel's layout says. Nothing is trusted further. */
#include <linux/sizes.h>

#include "frail.h"

/* x86 page tables. */
#define PTE_PRESENT	BIT_ULL(0)
#define PTE_LARGE	BIT_ULL(7)
#define PTE_ADDRESS	0x000ffffffffff000ULL

/* Where Linux has its image, wherever it is in RAM; the rest is for modules. */
#define IMAGE_START	0xffffffff80000000ULL
#define IMAGE_SIZE	SZ_1G

/**
 * frail_read_page() - read guest RAM within one page
 * @vcpu: the vCPU
 * @pa: guest-physical address
 * @buf: where to
 * @len: bytes, none of them beyond the page
 *
 * May sleep, as all here.
 *
 * Return: it is RAM and was read.
 */
bool frail_read_page(struct kvm_vcpu *vcpu, gpa_t pa, void *buf, unsigned int len)
{
	return kvmsym.kvm_vcpu_read_guest_page(vcpu, pa >> PAGE_SHIFT, buf,
					       offset_in_page(pa), len) >= 0;
}

/**
 * frail_physical() - where an address of the guest's kernel is in its RAM
 * @l: the guest kernel's layout
 * @va: an address in its direct map or in its image
 * @pa: the physical address
 *
 * Return: it is one of these.
 */
bool frail_physical(const struct frail_layout *l, u64 va, u64 *pa)
{
	*pa = va - l->direct_map;
	if (likely(*pa < l->direct_map_size))
		return true;
	*pa = va - IMAGE_START + l->phys_base;
	return va - IMAGE_START < IMAGE_SIZE;
}

/**
 * frail_read() - read guest RAM at an address of the guest's kernel
 * @vcpu: the vCPU
 * @l: the guest kernel's layout
 * @va: an address in its direct map or in its image
 * @buf: where to
 * @len: bytes
 *
 * Return: all of it is RAM and was read.
 */
bool frail_read(struct kvm_vcpu *vcpu, const struct frail_layout *l, u64 va, void *buf,
		unsigned int len)
{
	while (len) {
		unsigned int part;
		u64 pa;

		if (!frail_physical(l, va, &pa))
			return false;
		part = min_t(unsigned int, len, PAGE_SIZE - offset_in_page(pa));
		if (!frail_read_page(vcpu, pa, buf, part))
			return false;
		buf += part;
		va += part;
		len -= part;
	}
	return true;
}

/**
 * frail_translate() - translate an address by the guest kernel's own page table
 * @vcpu: the vCPU
 * @l: the guest kernel's layout
 * @va: the address
 *
 * The page table in use may be a process's that maps next to nothing of the kernel.
 *
 * Return: the physical address, or INVALID_GPA.
 */
gpa_t frail_translate(struct kvm_vcpu *vcpu, const struct frail_layout *l, u64 va)
{
	u64 table = l->page_table & PTE_ADDRESS;
	int level;

	for (level = l->levels - 1; level >= 0; level--) {
		int shift = PAGE_SHIFT + 9 * level;
		u64 pte;

		if (!frail_read_page(vcpu, table + (va >> shift & 511) * sizeof(pte),
			       &pte, sizeof(pte)) || !(pte & PTE_PRESENT))
			return INVALID_GPA;
		table = pte & PTE_ADDRESS;
		if (!level || ((pte & PTE_LARGE) && level <= 2))
			return (table & ~(BIT_ULL(shift) - 1)) | (va & (BIT_ULL(shift) - 1));
	}
	return INVALID_GPA;
}

/**
 * frail_window_move() - look a page up
 * @w: the window
 * @gfn: the page's number
 *
 * Return: it is RAM.
 */
bool frail_window_move(struct frail_window *w, gfn_t gfn)
{
	w->hva = kvmsym.kvm_vcpu_gfn_to_hva(w->vcpu, gfn);
	if (kvm_is_error_hva(w->hva)) {
		w->hva = 0;
		return false;
	}
	w->gfn = gfn;
	return true;
}
