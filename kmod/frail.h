/* SPDX-License-Identifier: GPL-2.0 */
/* What the files of frail.ko share. */
#ifndef FRAIL_H
#define FRAIL_H

#include <linux/kref.h>
#include <linux/kvm_host.h>
#include <linux/rcupdate.h>
#include <linux/spinlock.h>
#include <linux/task_work.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "frail_abi.h"

#define FRAIL_NAME "frail"

/*
 * KVM's functions, none of them imported: newer kernels export them to their
 * own vendor modules only. Resolved when the module loads, one list for all.
 */
#define FRAIL_KVM_SYMBOLS(S)							\
	S(bool, file_is_kvm, (struct file *file))				\
	S(void, kvm_get_kvm, (struct kvm *kvm))					\
	S(void, kvm_put_kvm, (struct kvm *kvm))					\
	S(void, vcpu_load, (struct kvm_vcpu *vcpu))				\
	S(void, vcpu_put, (struct kvm_vcpu *vcpu))				\
	S(struct kvm_vcpu *, kvm_get_running_vcpu, (void))			\
	S(int, kvm_vcpu_read_guest_page, (struct kvm_vcpu *vcpu, gfn_t gfn,	\
		void *data, int offset, int len))				\
	S(unsigned long, kvm_vcpu_gfn_to_hva, (struct kvm_vcpu *vcpu, gfn_t gfn))	\
	S(unsigned long, kvm_get_rflags, (struct kvm_vcpu *vcpu))		\
	S(void, kvm_set_rflags, (struct kvm_vcpu *vcpu, unsigned long rflags))	\
	S(void, kvm_queue_exception_e, (struct kvm_vcpu *vcpu, unsigned int nr,	\
		u32 error_code))						\
	S(void, kvm_queue_exception_p, (struct kvm_vcpu *vcpu, unsigned int nr,	\
		unsigned long payload))						\
	FRAIL_INJECT_FAULT_SYMBOL(S)						\
	S(int, handle_ud, (struct kvm_vcpu *vcpu))				\
	S(int, task_work_add, (struct task_struct *task,			\
		struct callback_head *work, enum task_work_notify_mode notify))

struct frail_symbols {
#define S(ret, name, args) ret (*name) args;
	FRAIL_KVM_SYMBOLS(S)
#undef S
	unsigned long set_efer_ip;
	unsigned long set_cr0_ip;
	/* VMX only, 0 on SVM. */
	unsigned long setup_uret_ip;
	unsigned long set_dr7_ip;
	unsigned long handle_dr_ip;
	/* SVM only; NULL where KVM has no such table. */
	void **svm_exit_handlers;
	struct kvm_x86_ops *ops;
	struct module *vendor;
	bool intel;
};

extern struct frail_symbols kvmsym;

int frail_symbols_resolve(void);
void frail_symbols_release(void);

/*
 * What a thread's description was made of. Each pointer is replaced when what it leads to
 * is: by exec, by a change of credentials, of the parent, of the cgroup.
 */
struct frail_task_key {
	u64 mm;
	u64 parent;
	u64 start;
	u64 cred;
	u64 cgroups;
	bool wanted;		/* somebody wants descriptions; if not, the rest is not read */
};

/* The system call a guest task made last. */
struct frail_call {
	u64 task;
	u64 ip;
	u64 sp;
	gpa_t regs;		/* where its saved registers are; 0: not looked up */
	s32 pid;
	s32 nr;
	u16 insn;
	bool pending;		/* its return is still to be told */
	u16 settle;		/* calls that shall leave by SYSRET all the same */
};

/* What was told of who a guest task is. */
struct frail_told {
	struct frail_task_key key;
	u64 who;		/* serial number of the description; 0: none */
	u32 epoch;		/* of the VM, then */
};

/* What is remembered of a guest task. */
struct frail_task {
	struct frail_call call;
	struct frail_told told;
};

/* The longest piece of a layout's pt_regs that is read: from ax to ss. */
#define FRAIL_REGS_MAX 256

#define FRAIL_INT80 0x80

enum frail_opcode {
	FRAIL_OP_OTHER,
	FRAIL_OP_INCOMPLETE,
	FRAIL_OP_SYSCALL,
	FRAIL_OP_SYSRET,
	FRAIL_OP_SYSRETQ,	/* with REX.W */
	FRAIL_OP_INT,
};

/* The instruction a vCPU stands at. */
struct frail_insn_at {
	unsigned long ip;	/* linear address */
	unsigned long next;	/* what RIP is behind it */
	enum frail_opcode op;
	int len;
	u8 vector;		/* of FRAIL_OP_INT */
	bool code64;
	bool user;
};

enum frail_fetched {
	FRAIL_FETCHED,
	FRAIL_FETCH_FAULT,
	FRAIL_FETCH_NO_RAM,	/* mapped to something that is not memory */
};

/* Power of two; a VM has two tasks per bucket before one is forgotten. */
#define FRAIL_TASK_BUCKETS 2048
#define FRAIL_TASK_WAYS 2

struct frail_bucket {
	spinlock_t lock;
	u32 victim;
	struct frail_task task[FRAIL_TASK_WAYS];
};

/* A vCPU of an armed VM; written by the vCPU's own thread except where noted. */
struct frail_vcpu {
	struct frail_vm *vm;
	struct callback_head work;	/* resync on the vCPU's thread */
	bool work_queued;		/* under frail_vm.sync_lock */
	bool synced;			/* under frail_vm.sync_lock */
	bool trapping;			/* EFER.SCE is clear in hardware */
	u32 blind;			/* ways in that it does not trap, enum frail_entry */
	u64 entries_of;			/* VMX: the LSTAR of the kernel whose entries @bp has */
	unsigned long bp[2];		/* VMX: breakpoints, 0 where there is no entry */
	u8 refetches;			/* in a row, at refetch_ip */
	unsigned long refetch_ip;
	u64 enters;
	u64 exits;
	u64 refetch_total;
	u64 identity_misses;
	u64 rets_known;
	u64 rets_unknown;
};

enum frail_state {
	FRAIL_UNARMED,		/* no frail_vm has it */
	FRAIL_ARMED,
	FRAIL_DISARMING,	/* emulates what is still trapped, tells nobody */
};

struct frail_vm {
	struct hlist_node node;
	struct kvm *kvm;
	u32 id;
	enum frail_exits exits;
	enum frail_state state;
	struct delayed_work free_work;

	/* Bringing vCPUs in line with @state. */
	spinlock_t sync_lock;
	wait_queue_head_t sync_wait;

	/* What poll() and FRAIL_IOC_STATUS tell. */
	spinlock_t status_lock;
	wait_queue_head_t status_wait;
	u32 generation;
	u32 generation_seen;
	u64 lstar;
	u64 kernel_gs_base;
	u64 cr3;
	bool layout_valid;		/* @layout is of this generation's kernel */
	u32 blind;

	struct mutex layout_lock;		/* @layout and @data are replaced */
	struct frail_layout __rcu *layout;	/* readers hold kvm->srcu */
	struct frail_data_spec __rcu *data;	/* likewise; NULL: no memory is read */

	atomic64_t descriptions;	/* serial number of the last one */
	u32 epoch;			/* descriptions of older ones are to be told again */

	struct frail_bucket *tasks;
	struct frail_vcpu vcpus[KVM_MAX_VCPUS];
};

/* vm.c */
extern struct srcu_struct frail_srcu;

int frail_vms_init(void);
void frail_vms_exit(void);
void frail_vms_drain(void);
struct file *frail_arm(struct frail_arm *arm);
struct frail_vm *frail_vm_find(struct kvm *kvm);
struct frail_vm *frail_vm_find_vcpu(struct kvm_vcpu *vcpu);
void frail_vm_new_kernel(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar);
void frail_set_blind(struct frail_vm *vm, struct kvm_vcpu *vcpu, u32 blind);
int frail_vcpu_set_efer(struct kvm_vcpu *vcpu, u64 efer, unsigned long rest);
int frail_vcpu_set_cr0(struct kvm_vcpu *vcpu, unsigned long cr0);
void frail_vcpu_setup_uret(struct kvm_vcpu *vcpu, unsigned long unused, unsigned long rest);

/* hook.c */
int frail_hooks_install(void);
void frail_hooks_remove(void);
int frail_call_rest(struct kvm_vcpu *vcpu, u64 arg, unsigned long rest);

/* insn.c */
enum frail_fetched frail_fetch(struct kvm_vcpu *vcpu, struct frail_insn_at *insn,
			       struct frail_exception *e);
bool frail_read_kernel(struct kvm_vcpu *vcpu, unsigned long addr, void *buf, int len);
bool frail_read_user(struct kvm_vcpu *vcpu, unsigned long addr, void *buf, int len);
int frail_int_gate(struct kvm_vcpu *vcpu, u8 vector, int cpl, unsigned long *handler);

/* emulate.c */
int frail_handle_ud(struct kvm_vcpu *vcpu);

/* svm.c */
void frail_svm_init(void);
void frail_svm_exit(void);
bool frail_svm_trap_int(struct kvm_vcpu *vcpu, bool trap);
bool frail_svm_encrypted(struct kvm_vcpu *vcpu);

/* vmx.c */
void frail_vcpu_set_dr7(struct kvm_vcpu *vcpu, unsigned long dr7, unsigned long rest);
int frail_vcpu_handle_dr(struct kvm_vcpu *vcpu, unsigned long unused, unsigned long rest);
int frail_queue_exception(struct kvm_vcpu *vcpu, unsigned int vector, unsigned long payload);
void frail_vmx_forget(struct frail_vm *vm, struct kvm_vcpu *vcpu);
void frail_vmx_follow(struct frail_vm *vm, struct kvm_vcpu *vcpu);

/* report.c */
bool frail_report_enter(struct frail_vm *vm, struct kvm_vcpu *vcpu, u16 insn,
			unsigned long ip, unsigned long sp, u64 lstar);
void frail_report_exit(struct frail_vm *vm, struct kvm_vcpu *vcpu, bool code64,
		       unsigned long target);
void frail_report_coverage(struct frail_vm *vm, struct kvm_vcpu *vcpu, u32 covered, u32 blind);

/* memory.c */
bool frail_read_page(struct kvm_vcpu *vcpu, gpa_t pa, void *buf, unsigned int len);
bool frail_physical(const struct frail_layout *l, u64 va, u64 *pa);
bool frail_read(struct kvm_vcpu *vcpu, const struct frail_layout *l, u64 va, void *buf,
		unsigned int len);
gpa_t frail_translate(struct kvm_vcpu *vcpu, const struct frail_layout *l, u64 va);

/* A page of guest RAM that is read more than once: to look it up is what costs. */
struct frail_window {
	struct kvm_vcpu *vcpu;
	const struct frail_layout *l;
	gfn_t gfn;
	unsigned long hva;	/* 0: not looked up yet */
};

bool frail_window_move(struct frail_window *w, gfn_t gfn);

/* Reads a word at an address of the guest's kernel, as frail_read() does. */
static __always_inline bool frail_read_word(struct frail_window *w, u64 va, u64 *word)
{
	u64 pa;

	if (!frail_physical(w->l, va, &pa))
		return false;
	if (unlikely(offset_in_page(pa) > PAGE_SIZE - sizeof(*word)))
		return frail_read(w->vcpu, w->l, va, word, sizeof(*word));
	if ((!w->hva || pa >> PAGE_SHIFT != w->gfn) && !frail_window_move(w, pa >> PAGE_SHIFT))
		return false;
	return !__get_user(*word, (u64 __user *)(w->hva + offset_in_page(pa)));
}

/* identity.c */
void frail_identify(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		    struct frail_event *ev, struct frail_task_key *key);
void frail_tasks_forget(struct frail_vm *vm);
bool frail_call_enter(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		      struct frail_event *ev, const struct frail_task_key *key);
void frail_call_exit(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		     struct frail_event *ev, const struct frail_task_key *key);

/* data.c */
const struct frail_reads *frail_reads_of(struct frail_vm *vm, struct kvm_vcpu *vcpu, s64 nr,
					 bool code64);
void frail_tell_data(struct kvm_vcpu *vcpu, const struct frail_event *ev,
		     const struct frail_reads *reads, const u64 *args, bool code64);
long frail_set_data(struct frail_vm *vm, const struct frail_data_spec __user *arg);

/* process.c */
u64 frail_describe(struct frail_vm *vm, struct kvm_vcpu *vcpu, const struct frail_layout *l,
		   const struct frail_event *ev, const struct frail_task_key *key);

/* The ways into a kernel that there are on this host's CPUs, enum frail_entry. */
static inline u32 frail_ways(void)
{
	return FRAIL_ENTRY_SYSCALL | FRAIL_ENTRY_INT80 |
	       (kvmsym.intel ? FRAIL_ENTRY_SYSENTER : 0);
}

/* Has KVM fetch @reg from where the hardware left it, if it has not yet. */
static inline void frail_reg_cache(struct kvm_vcpu *vcpu, int reg)
{
	if (!frail_reg_cached(vcpu, reg))
		kvmsym.ops->cache_reg(vcpu, reg);
}

static inline unsigned long frail_rsp(struct kvm_vcpu *vcpu)
{
	frail_reg_cache(vcpu, VCPU_REGS_RSP);
	return vcpu->arch.regs[VCPU_REGS_RSP];
}

static inline unsigned long frail_rip(struct kvm_vcpu *vcpu)
{
	frail_reg_cache(vcpu, FRAIL_REG_RIP);
	return frail_rip_field(vcpu);
}

static inline void frail_set_rip(struct kvm_vcpu *vcpu, unsigned long ip)
{
	frail_rip_field(vcpu) = ip;
	frail_reg_set_dirty(vcpu, FRAIL_REG_RIP);
}

static inline void frail_set_reg(struct kvm_vcpu *vcpu, int reg, unsigned long val)
{
	vcpu->arch.regs[reg] = val;
	frail_reg_set_dirty(vcpu, reg);
}

static inline u64 frail_cr3(struct kvm_vcpu *vcpu)
{
	frail_reg_cache(vcpu, FRAIL_REG_CR3);
	return vcpu->arch.cr3;
}

/* Reads an MSR the guest owns; 0 where the vCPU has none by that number. */
static inline u64 frail_msr(struct kvm_vcpu *vcpu, u32 index)
{
	struct msr_data msr = { .index = index, .host_initiated = true };

	return kvmsym.ops->get_msr(vcpu, &msr) ? 0 : msr.data;
}

#endif
