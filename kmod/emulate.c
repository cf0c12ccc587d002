// SPDX-License-Identifier: GPL-2.0
/*
 * What a vCPU does at a #UD exit of an armed VM: with EFER.SCE clear in hardware,
 * SYSCALL and SYSRET raise #UD; this emulates them and reports the call.
 *
 * AMD64 Architecture Programmer's Manual vol. 3, SYSCALL and SYSRET; Intel SDM
 * vol. 2B for where Intel differs.
 */
#include <linux/module.h>
#include <asm/debugreg.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>

#include "frail.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* PFERR_* of every kernel, as the page-table walker takes them. */
#define ACCESS_USER	BIT(2)
#define ACCESS_FETCH	BIT(4)

#define INSN_MAX	15

/*
 * Fetches that may fail in a row at one address before the fault they met is
 * injected. Running the instruction again lets the hardware raise what is due;
 * this bounds a guest whose TLB and page tables disagree for ever.
 */
#define REFETCH_MAX	16

/* SYSRET loads these bits of R11; RF and VM are cleared. */
#define SYSRET_FLAGS	0x3c7fd7UL

enum decoded {
	DECODED_OTHER,
	DECODED_INCOMPLETE,
	DECODED_SYSCALL,
	DECODED_SYSRET,
	DECODED_SYSRETQ,	/* with REX.W */
};

/*
 * Decodes @len bytes. Any legacy prefix but LOCK may stand before the opcode; a
 * REX prefix counts only right before it, and only in 64-bit code.
 */
static enum decoded decode(const u8 *code, int len, bool code64, int *insn_len)
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
				return DECODED_OTHER;
			rex = code[i];
			continue;
		case 0x0f:
			if (i + 1 == len)
				return DECODED_INCOMPLETE;
			*insn_len = i + 2;
			if (code[i + 1] == 0x05)
				return DECODED_SYSCALL;
			if (code[i + 1] == 0x07)
				return rex & 8 ? DECODED_SYSRETQ : DECODED_SYSRET;
			return DECODED_OTHER;
		default:
			return DECODED_OTHER;
		}
	}
	return DECODED_INCOMPLETE;
}

enum fetched {
	FETCHED,
	FETCH_FAULT,	/* @e holds the page fault */
	FETCH_NO_RAM,	/* mapped to something that is not memory */
};

/* Reads @len bytes of code, all on one page. */
static enum fetched fetch(struct kvm_vcpu *vcpu, unsigned long addr, void *buf,
			  int len, bool user, struct frail_exception *e)
{
	struct kvm_mmu *mmu = vcpu->arch.walk_mmu;
	gpa_t gpa = mmu->gva_to_gpa(vcpu, mmu, addr,
				    ACCESS_FETCH | (user ? ACCESS_USER : 0),
				    frail_kvm_exception(e));

	if (gpa == INVALID_GPA)
		return FETCH_FAULT;
	if (kvmsym.kvm_vcpu_read_guest_page(vcpu, gpa >> PAGE_SHIFT, buf,
					    offset_in_page(gpa), len) < 0)
		return FETCH_NO_RAM;
	return FETCHED;
}

/* Fetches and decodes the instruction at @ip; the second page only when needed. */
static enum fetched fetch_insn(struct kvm_vcpu *vcpu, unsigned long ip,
			       bool code64, bool user, enum decoded *what,
			       int *len, struct frail_exception *e)
{
	int first = min_t(int, INSN_MAX, PAGE_SIZE - offset_in_page(ip));
	u8 code[INSN_MAX];
	enum fetched f = fetch(vcpu, ip, code, first, user, e);

	if (f != FETCHED)
		return f;
	*what = decode(code, first, code64, len);
	if (*what != DECODED_INCOMPLETE || first == INSN_MAX)
		return FETCHED;
	f = fetch(vcpu, ip + first, code + first, INSN_MAX - first, user, e);
	if (f == FETCHED)
		*what = decode(code, INSN_MAX, code64, len);
	return f;
}

static unsigned long get_rflags(struct kvm_vcpu *vcpu)
{
	/* KVM's own hides a debugger's TF. */
	return vcpu->guest_debug ? kvmsym.kvm_get_rflags(vcpu) :
				   kvmsym.ops->get_rflags(vcpu);
}

static void set_rflags(struct kvm_vcpu *vcpu, unsigned long rflags)
{
	if (vcpu->guest_debug)
		kvmsym.kvm_set_rflags(vcpu, rflags);
	else
		kvmsym.ops->set_rflags(vcpu, rflags);
}

/* Loads flat CS and SS of privilege @dpl; @code64 or 32-bit code. */
static void load_segments(struct kvm_vcpu *vcpu, u16 cs, u16 ss, u8 dpl, bool code64)
{
	struct kvm_segment seg = {
		.base = 0,
		.limit = 0xffffffff,
		.selector = cs,
		.type = 0xb,
		.present = 1,
		.dpl = dpl,
		.db = !code64,
		.s = 1,
		.l = code64,
		.g = 1,
	};

	kvmsym.ops->set_segment(vcpu, &seg, VCPU_SREG_CS);
	seg.selector = ss;
	seg.type = 3;
	seg.db = 1;
	seg.l = 0;
	kvmsym.ops->set_segment(vcpu, &seg, VCPU_SREG_SS);
}

/*
 * Completes an emulated instruction whose new flags are @rflags: what hardware
 * and a debugger do after it. Returns what the exit handler returns.
 */
static int finish(struct kvm_vcpu *vcpu, unsigned long ip, unsigned long rflags)
{
	frail_set_rip(vcpu, ip);
	set_rflags(vcpu, rflags);
	kvmsym.ops->set_interrupt_shadow(vcpu, 0);

	if (unlikely(vcpu->guest_debug & KVM_GUESTDBG_SINGLESTEP)) {
		vcpu->run->debug.arch.dr6 = DR6_BS | DR6_ACTIVE_LOW;
		vcpu->run->debug.arch.pc = ip;
		vcpu->run->debug.arch.exception = DB_VECTOR;
		vcpu->run->exit_reason = KVM_EXIT_DEBUG;
		return 0;
	}
	if (unlikely(rflags & X86_EFLAGS_TF))
		kvmsym.kvm_queue_exception_p(vcpu, DB_VECTOR, DR6_BS);
	return 1;
}

static void fill_common(struct frail_vm *vm, struct kvm_vcpu *vcpu,
			struct frail_event *ev, u64 lstar)
{
	ev->vm = vm->id;
	ev->vcpu = vcpu->vcpu_idx;
	ev->sp = frail_rsp(vcpu);
	ev->cr3 = frail_cr3(vcpu);
	frail_identify(vm, vcpu, lstar, ev);
}

static void report_enter(struct frail_vm *vm, struct kvm_vcpu *vcpu, bool code64,
			 unsigned long next, u64 lstar)
{
	unsigned long *r = vcpu->arch.regs;
	struct frail_event ev = {
		.kind = FRAIL_EVENT_ENTER,
		.flags = FRAIL_EVENT_NR,
		.nr = (s32)r[VCPU_REGS_RAX],
		.ip = next,
	};

	fill_common(vm, vcpu, &ev, lstar);
	if (code64) {
		ev.insn = FRAIL_INSN_SYSCALL64;
		ev.args[0] = r[VCPU_REGS_RDI];
		ev.args[1] = r[VCPU_REGS_RSI];
		ev.args[2] = r[VCPU_REGS_RDX];
		ev.args[3] = r[VCPU_REGS_R10];
		ev.args[4] = r[VCPU_REGS_R8];
		ev.args[5] = r[VCPU_REGS_R9];
	} else {
		struct frail_exception e;
		u32 arg6 = 0;

		/* SYSCALL overwrites ECX: Linux takes it from EBP, and EBP from the stack. */
		kvmsym.kvm_read_guest_virt(vcpu, (u32)ev.sp, &arg6, sizeof(arg6),
					   frail_kvm_exception(&e));
		ev.insn = FRAIL_INSN_SYSCALL32;
		ev.args[0] = (u32)r[VCPU_REGS_RBX];
		ev.args[1] = (u32)r[VCPU_REGS_RBP];
		ev.args[2] = (u32)r[VCPU_REGS_RDX];
		ev.args[3] = (u32)r[VCPU_REGS_RSI];
		ev.args[4] = (u32)r[VCPU_REGS_RDI];
		ev.args[5] = arg6;
	}
	frail_call_enter(vm, &ev);
	trace_guest_sys_enter(&ev);
}

static void report_exit(struct frail_vm *vm, struct kvm_vcpu *vcpu, bool code64,
			unsigned long target)
{
	unsigned long ret = vcpu->arch.regs[VCPU_REGS_RAX];
	struct frail_event ev = {
		.kind = FRAIL_EVENT_EXIT,
		.flags = FRAIL_EVENT_RET,
		.insn = code64 ? FRAIL_INSN_SYSRET64 : FRAIL_INSN_SYSRET32,
		.nr = -1,
		.ret = code64 ? (s64)ret : (s32)ret,
		.ip = target,
	};

	fill_common(vm, vcpu, &ev, frail_msr(vcpu, MSR_LSTAR));
	frail_call_exit(vm, &ev);
	trace_guest_sys_exit(&ev);
}

/* SYSCALL in long mode. */
static int emulate_syscall(struct frail_vm *vm, struct frail_vcpu *fv,
			   struct kvm_vcpu *vcpu, bool code64, unsigned long next)
{
	u64 lstar = frail_msr(vcpu, MSR_LSTAR);
	u64 star = frail_msr(vcpu, MSR_STAR);
	unsigned long rflags = get_rflags(vcpu) & ~X86_EFLAGS_RF;
	u16 cs = (star >> 32) & 0xfffc;

	fv->enters++;
	if (READ_ONCE(vm->state) == FRAIL_ARMED) {
		if (unlikely(lstar != READ_ONCE(vm->lstar)))
			frail_vm_new_kernel(vm, vcpu, lstar);
		if (trace_guest_sys_enter_enabled() || trace_guest_sys_exit_enabled())
			report_enter(vm, vcpu, code64, next, lstar);
	}

	frail_set_reg(vcpu, VCPU_REGS_RCX, next);
	frail_set_reg(vcpu, VCPU_REGS_R11, rflags);
	load_segments(vcpu, cs, ((star >> 32) & 0xffff) + 8, 0, true);
	rflags &= ~frail_msr(vcpu, MSR_SYSCALL_MASK);
	return finish(vcpu, code64 ? lstar : frail_msr(vcpu, MSR_CSTAR),
		      rflags | X86_EFLAGS_FIXED);
}

static bool canonical(struct kvm_vcpu *vcpu, unsigned long addr)
{
	int bits = vcpu->arch.cr4 & X86_CR4_LA57 ? 57 : 48;

	return (s64)addr >> (bits - 1) == 0 || (s64)addr >> (bits - 1) == -1;
}

/* SYSRET in any protected mode. */
static int emulate_sysret(struct frail_vm *vm, struct frail_vcpu *fv,
			  struct kvm_vcpu *vcpu, bool long_mode, bool to64)
{
	unsigned long target = vcpu->arch.regs[VCPU_REGS_RCX];
	u64 star = frail_msr(vcpu, MSR_STAR);
	u16 base = star >> 48;
	unsigned long rflags;

	if (kvmsym.ops->get_cpl(vcpu) != 0)
		goto gp;
	if (!to64)
		target = (u32)target;
	/* AMD loads such an address and faults at the fetch, in user mode. */
	else if (boot_cpu_data.x86_vendor == X86_VENDOR_INTEL && !canonical(vcpu, target))
		goto gp;

	fv->exits++;
	if (trace_guest_sys_exit_enabled() && READ_ONCE(vm->state) == FRAIL_ARMED)
		report_exit(vm, vcpu, to64, target);

	if (long_mode)
		rflags = (vcpu->arch.regs[VCPU_REGS_R11] & SYSRET_FLAGS) | X86_EFLAGS_FIXED;
	else
		rflags = get_rflags(vcpu) | X86_EFLAGS_IF;
	load_segments(vcpu, (to64 ? base + 16 : base) | 3, (base + 8) | 3, 3, to64);
	return finish(vcpu, target, rflags);
gp:
	kvmsym.kvm_queue_exception_e(vcpu, GP_VECTOR, 0);
	return 1;
}

/* Returns what the exit handler returns. */
static int fetch_failed(struct frail_vcpu *fv, struct kvm_vcpu *vcpu,
			unsigned long ip, struct frail_exception *e)
{
	fv->refetch_total++;
	if (fv->refetch_ip != ip) {
		fv->refetch_ip = ip;
		fv->refetches = 0;
	}
	if (fv->refetches++ >= REFETCH_MAX) {
		fv->refetches = 0;
		frail_inject_fault(vcpu, frail_kvm_exception(e));
	}
	return 1;
}

/**
 * frail_handle_ud() - a vCPU of any VM took #UD
 * @vcpu: the vCPU, loaded
 *
 * Runs on the vCPU's thread, preemptible, with kvm->srcu held for reading; may
 * sleep. Allocates nothing.
 *
 * Return: what handle_ud returns (1: resume the guest, 0: leave to user space),
 * or -1 when the #UD is not Frail's and KVM shall handle it.
 */
int frail_handle_ud(struct kvm_vcpu *vcpu)
{
	struct frail_vm *vm = frail_vm_find(vcpu->kvm);
	u64 efer = vcpu->arch.efer;
	struct frail_exception e;
	struct frail_vcpu *fv;
	enum decoded what = DECODED_OTHER;
	unsigned long ip;
	int db, l, len;
	bool code64;

	if (likely(!vm))
		return -1;
	/* The guest's own #UDs, and those of a guest's guest. */
	if (!(efer & EFER_SCE) || frail_is_guest_mode(vcpu) ||
	    !(vcpu->arch.cr0 & X86_CR0_PE))
		return -1;

	fv = &vm->vcpus[vcpu->vcpu_idx];
	kvmsym.ops->get_cs_db_l_bits(vcpu, &db, &l);
	code64 = (efer & EFER_LMA) && l;
	ip = frail_rip(vcpu);
	if (!code64) {
		struct kvm_segment cs;

		kvmsym.ops->get_segment(vcpu, &cs, VCPU_SREG_CS);
		ip = (u32)(ip + cs.base);
	}

	switch (fetch_insn(vcpu, ip, code64, kvmsym.ops->get_cpl(vcpu) == 3,
			   &what, &len, &e)) {
	case FETCH_FAULT:
		return fetch_failed(fv, vcpu, ip, &e);
	case FETCH_NO_RAM:
		return -1;
	case FETCHED:
		fv->refetches = 0;
	}

	switch (what) {
	case DECODED_SYSCALL:
		/*
		 * Intel raises #UD for 32-bit code. Outside long mode KVM's
		 * emulator does it: no 64-bit kernel's system calls are there.
		 */
		if (!(efer & EFER_LMA) ||
		    (!code64 && boot_cpu_data.x86_vendor == X86_VENDOR_INTEL))
			return -1;
		ip = frail_rip(vcpu) + len;
		return emulate_syscall(vm, fv, vcpu, code64, code64 ? ip : (u32)ip);
	case DECODED_SYSRET:
	case DECODED_SYSRETQ:
		if (boot_cpu_data.x86_vendor == X86_VENDOR_INTEL && !code64)
			return -1;
		return emulate_sysret(vm, fv, vcpu, efer & EFER_LMA,
				      what == DECODED_SYSRETQ);
	default:
		return -1;
	}
}
