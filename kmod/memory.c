// SPDX-License-Identifier: GPL-2.0
/* Reading a guest's RAM where its kernel's layout says. Nothing is trusted further. */
#include "frail.h"

/* x86 page tables. */
#define PTE_PRESENT	BIT_ULL(0)
#define PTE_LARGE	BIT_ULL(7)
#define PTE_ADDRESS	0x000ffffffffff000ULL

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
 * frail_read_direct() - read guest RAM at an address of the guest's direct map
 * @vcpu: the vCPU
 * @l: the guest kernel's layout
 * @va: the address
 * @buf: where to
 * @len: bytes
 *
 * Return: all of it is RAM and was read.
 */
bool frail_read_direct(struct kvm_vcpu *vcpu, const struct frail_layout *l,
			u64 va, void *buf, unsigned int len)
{
	u64 pa = va - l->direct_map;

	while (len) {
		unsigned int part = min_t(unsigned int, len,
					  PAGE_SIZE - offset_in_page(pa));

		if (pa >= l->direct_map_size || !frail_read_page(vcpu, pa, buf, part))
			return false;
		buf += part;
		pa += part;
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
 * frail_window_move() - look a page of the direct map up
 * @w: the window
 * @va: an address in the page
 * @gfn: the page's number
 *
 * Return: it is RAM.
 */
bool frail_window_move(struct frail_window *w, u64 va, gfn_t gfn)
{
	w->hva = 0;
	if (va - w->l->direct_map >= w->l->direct_map_size)
		return false;
	w->hva = kvmsym.kvm_vcpu_gfn_to_hva(w->vcpu, gfn);
	if (kvm_is_error_hva(w->hva)) {
		w->hva = 0;
		return false;
	}
	w->gfn = gfn;
	return true;
}
