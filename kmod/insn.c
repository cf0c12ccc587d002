// SPDX-License-Identifier: GPL-2.0
/* The instruction that a vCPU exited at: fetched from guest memory and decoded. */
#include <linux/module.h>
#include <asm/desc_defs.h>

#include "frail.h"

/* PFERR_* of every kernel, as the page-table walker takes them. */
#define ACCESS_USER	BIT(2)
#define ACCESS_FETCH	BIT(4)

#define INSN_MAX	15

/*
 * Decodes @len bytes. Any legacy prefix but LOCK may stand before the opcode; a
 * REX prefix counts only right before it, and only in 64-bit code.
 */
static enum frail_opcode decode(const u8 *code, int len, bool code64, struct frail_insn_at *insn)
{
	u8 rex = 0;
	int i;

	for (i = 0; i < len; i++) {
		switch (code[i]) {
		case 0x26: case 0x2e: case 0x36: case 0x3e:
		case 0x64: case 0x65: case 0x66: case 0x67:
		case 0xf2: case 0xf3:
			rex = 0;
			continue;
		case 0x40 ... 0x4f:
			if (!code64)
				return FRAIL_OP_OTHER;
			rex = code[i];
			continue;
		case 0x0f:
			if (i + 1 == len)
				return FRAIL_OP_INCOMPLETE;
			insn->len = i + 2;
			if (code[i + 1] == 0x05)
				return FRAIL_OP_SYSCALL;
			if (code[i + 1] == 0x07)
				return rex & 8 ? FRAIL_OP_SYSRETQ : FRAIL_OP_SYSRET;
			return FRAIL_OP_OTHER;
		case 0xcc: case 0xce:
			/* INT3, INTO: not what SVM calls INT n, but an emulator may. */
			if (code[i] == 0xce && code64)
				return FRAIL_OP_OTHER;
			insn->len = i + 1;
			insn->vector = code[i] == 0xcc ? BP_VECTOR : OF_VECTOR;
			return FRAIL_OP_INT;
		case 0xcd:
			if (i + 1 == len)
				return FRAIL_OP_INCOMPLETE;
			insn->len = i + 2;
			insn->vector = code[i + 1];
			return FRAIL_OP_INT;
		default:
			return FRAIL_OP_OTHER;
		}
	}
	return FRAIL_OP_INCOMPLETE;
}

/* Reads @len bytes at a virtual address, all on one page, by the page table in use. */
static enum frail_fetched read_virtual(struct kvm_vcpu *vcpu, unsigned long addr, u64 access,
				       void *buf, int len, struct frail_exception *e)
{
	struct kvm_mmu *mmu = vcpu->arch.walk_mmu;
	gpa_t gpa = mmu->gva_to_gpa(vcpu, mmu, addr, access, frail_kvm_exception(e));

	if (gpa == INVALID_GPA)
		return FRAIL_FETCH_FAULT;
	if (kvmsym.kvm_vcpu_read_guest_page(vcpu, gpa >> PAGE_SHIFT, buf,
					    offset_in_page(gpa), len) < 0)
		return FRAIL_FETCH_NO_RAM;
	return FRAIL_FETCHED;
}

static bool read_pages(struct kvm_vcpu *vcpu, unsigned long addr, u64 access, void *buf, int len)
{
	int first = min_t(int, len, PAGE_SIZE - offset_in_page(addr));
	struct frail_exception e;

	return read_virtual(vcpu, addr, access, buf, first, &e) == FRAIL_FETCHED &&
	       (first == len || read_virtual(vcpu, addr + first, access, buf + first,
					     len - first, &e) == FRAIL_FETCHED);
}

/**
 * frail_read_kernel() - read guest memory as its kernel would
 * @vcpu: the vCPU, loaded; may sleep
 * @addr: virtual address
 * @buf: where to
 * @len: bytes, no more than reach into two pages
 *
 * Return: all of it was read.
 */
bool frail_read_kernel(struct kvm_vcpu *vcpu, unsigned long addr, void *buf, int len)
{
	return read_pages(vcpu, addr, 0, buf, len);
}

/**
 * frail_read_user() - read guest memory as its user would, whatever the vCPU's privilege
 * @vcpu: the vCPU, loaded; may sleep
 * @addr: virtual address
 * @buf: where to
 * @len: bytes, no more than reach into two pages
 *
 * SMAP keeps frail_read_kernel() from what is the user's.
 *
 * Return: all of it was read.
 */
bool frail_read_user(struct kvm_vcpu *vcpu, unsigned long addr, void *buf, int len)
{
	return read_pages(vcpu, addr, ACCESS_USER, buf, len);
}

/**
 * frail_int_gate() - where an INT instruction leads
 * @vcpu: the vCPU, loaded, in long mode; may sleep
 * @vector: its operand
 * @cpl: the privilege of the code that has it
 * @handler: the handler's address, or NULL
 *
 * Return: 0, or the exception that the instruction raises: GP_VECTOR or NP_VECTOR.
 */
int frail_int_gate(struct kvm_vcpu *vcpu, u8 vector, int cpl, unsigned long *handler)
{
	struct desc_ptr idt;
	gate_desc gate;

	kvmsym.ops->get_idt(vcpu, &idt);
	if ((vector + 1) * sizeof(gate) - 1 > idt.size ||
	    !frail_read_kernel(vcpu, idt.address + vector * sizeof(gate), &gate, sizeof(gate)) ||
	    gate.bits.dpl < cpl)
		return GP_VECTOR;
	if (!gate.bits.p)
		return NP_VECTOR;
	if (handler)
		*handler = gate_offset(&gate);
	return 0;
}

/**
 * frail_fetch() - fetch and decode the instruction that a vCPU stands at
 * @vcpu: the vCPU, loaded; may sleep
 * @insn: what it is
 * @e: the page fault, where FRAIL_FETCH_FAULT is returned
 *
 * The page after the one it begins in is looked at only when needed.
 */
enum frail_fetched frail_fetch(struct kvm_vcpu *vcpu, struct frail_insn_at *insn,
			       struct frail_exception *e)
{
	u64 access = ACCESS_FETCH;
	enum frail_fetched f;
	u8 code[INSN_MAX];
	int db, l, first;

	kvmsym.ops->get_cs_db_l_bits(vcpu, &db, &l);
	insn->code64 = (vcpu->arch.efer & EFER_LMA) && l;
	insn->ip = frail_rip(vcpu);
	if (!insn->code64) {
		struct kvm_segment cs;

		kvmsym.ops->get_segment(vcpu, &cs, VCPU_SREG_CS);
		insn->ip = (u32)(insn->ip + cs.base);
	}
	insn->user = kvmsym.ops->get_cpl(vcpu) == 3;
	if (insn->user)
		access |= ACCESS_USER;

	first = min_t(int, INSN_MAX, PAGE_SIZE - offset_in_page(insn->ip));
	f = read_virtual(vcpu, insn->ip, access, code, first, e);
	if (f != FRAIL_FETCHED)
		return f;
	insn->op = decode(code, first, insn->code64, insn);
	if (insn->op == FRAIL_OP_INCOMPLETE && first < INSN_MAX) {
		f = read_virtual(vcpu, insn->ip + first, access, code + first,
				 INSN_MAX - first, e);
		if (f != FRAIL_FETCHED)
			return f;
		insn->op = decode(code, INSN_MAX, insn->code64, insn);
	}
	insn->next = frail_rip(vcpu) + insn->len;
	if (!insn->code64)
		insn->next = (u32)insn->next;
	return FRAIL_FETCHED;
}
