// SPDX-License-Identifier: GPL-2.0
/* Armed VMs: arming, disarming, the VM descriptor. */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/hashtable.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/task.h>
#include <linux/srcu.h>
#include <linux/uaccess.h>
#include <asm/processor-flags.h>

#include "frail.h"

/* How long arming waits for an earlier descriptor of the same VM to be let go. */
#define GONE_WAIT	(5 * HZ)
/* How long arming and closing wait for vCPUs before they leave it to their threads. */
#define SYNC_WAIT	(2 * HZ)
#define SYNC_RETRY	(HZ / 50)
/* How long arming waits for an ioctl that may be setting a vCPU's CPUID. */
#define CPUID_WAIT	(HZ / 50)
#define FREE_RETRY	(HZ / 10)

/* No offset in a task_struct comes near this. */
#define LAYOUT_OFFSET_MAX	SZ_64K
/* leaf 7, subleaves 0 and 1 */
#define CPUID_7_0_ECX_SHSTK	BIT(7)
#define CPUID_7_1_EAX_FRED	BIT(17)

/* No kernel stack is larger; from ax to sp pt_regs has 80 bytes. */
#define LAYOUT_STACK_MAX	SZ_1M
#define LAYOUT_REGS_MAX		168
/* x86 has at most 52 bits of physical address. */
#define LAYOUT_SPAN_MAX		BIT_ULL(52)

/* Lookups run under RCU; what they find lives as long as kvm->srcu or frail_srcu. */
static DEFINE_HASHTABLE(vms, 8);
/* Adding and removing VMs. */
static DEFINE_MUTEX(vms_lock);
static DECLARE_WAIT_QUEUE_HEAD(vms_gone);
static u32 last_id;
/* Of the VMs there are, by id % FRAIL_VM_SLOTS; under vms_lock. */
static DECLARE_BITMAP(slots, FRAIL_VM_SLOTS);

/* Held by hooks of what KVM calls without kvm->srcu; set_efer may sleep below one. */
DEFINE_SRCU(frail_srcu);

static struct workqueue_struct *free_queue;

/**
 * frail_vm_find() - the armed VM that @kvm is, or NULL
 * @kvm: any VM
 *
 * The caller holds @kvm->srcu or frail_srcu for as long as it uses the result.
 */
struct frail_vm *frail_vm_find(struct kvm *kvm)
{
	struct frail_vm *vm, *found = NULL;

	rcu_read_lock();
	hash_for_each_possible_rcu(vms, vm, node, (unsigned long)kvm) {
		if (vm->kvm == kvm) {
			found = vm;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/**
 * frail_vm_find_vcpu() - the armed VM that a vCPU is of, or NULL
 * @vcpu: a vCPU of any VM; one under construction has no place in its VM yet
 *
 * As frail_vm_find().
 */
struct frail_vm *frail_vm_find_vcpu(struct kvm_vcpu *vcpu)
{
	struct frail_vm *vm = frail_vm_find(vcpu->kvm);

	return vm && kvm_get_vcpu(vcpu->kvm, vcpu->vcpu_idx) == vcpu ? vm : NULL;
}

/* Hardware shall trap the system calls of a vCPU whose EFER is @efer. */
static bool traps(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 efer)
{
	return vm && READ_ONCE(vm->state) == FRAIL_ARMED && (efer & EFER_SCE) &&
	       !frail_is_guest_mode(vcpu);
}

/**
 * frail_vcpu_set_efer() - KVM sets a vCPU's EFER
 * @vcpu: a vCPU of any VM, loaded
 * @efer: what the guest or user space asked for
 * @rest: the rest of set_efer
 *
 * While the VM is armed the hardware gets SCE clear and vcpu->arch.efer, the
 * truth that the guest, user space and migration see, keeps it. A guest's guest
 * runs with its own.
 *
 * Return: what set_efer returns.
 */
int frail_vcpu_set_efer(struct kvm_vcpu *vcpu, u64 efer, unsigned long rest)
{
	struct frail_vm *vm;
	bool trap;
	int idx, ret;

	idx = srcu_read_lock(&frail_srcu);
	vm = frail_vm_find_vcpu(vcpu);
	trap = traps(vm, vcpu, efer);
	ret = frail_call_rest(vcpu, trap ? efer & ~EFER_SCE : efer, rest);
	if (!ret && trap)
		vcpu->arch.efer |= EFER_SCE;
	if (!ret && vm && !frail_is_guest_mode(vcpu)) {
		vm->vcpus[vcpu->vcpu_idx].trapping = trap;
		if (!kvmsym.intel) {
			bool ints = trap && (efer & (EFER_LME | EFER_LMA));

			frail_set_blind(vm, vcpu, frail_svm_trap_int(vcpu, ints) == ints ?
						  0 : FRAIL_ENTRY_INT80);
		}
	}
	srcu_read_unlock(&frail_srcu, idx);
	return ret;
}

/**
 * frail_vcpu_set_cr0() - KVM sets a vCPU's CR0
 * @vcpu: a vCPU of any VM, loaded
 * @cr0: what the guest or user space asked for
 *
 * Linux has AM set from its first instructions to its end, which is a reset, an INIT or
 * a kexec: all of them clear it. The next kernel may come up at the same address.
 *
 * Return: -1, KVM goes on.
 */
int frail_vcpu_set_cr0(struct kvm_vcpu *vcpu, unsigned long cr0)
{
	int idx = srcu_read_lock(&frail_srcu);
	struct frail_vm *vm = frail_vm_find_vcpu(vcpu);

	if (vm && !frail_is_guest_mode(vcpu) && (vcpu->arch.cr0 & ~cr0 & X86_CR0_AM)) {
		spin_lock(&vm->status_lock);
		vm->lstar = 0;
		vm->layout_valid = false;
		spin_unlock(&vm->status_lock);
		if (kvmsym.intel)
			frail_vmx_forget(vm, vcpu);
	}
	srcu_read_unlock(&frail_srcu, idx);
	return -1;
}

/**
 * frail_vcpu_setup_uret() - VMX derives what it loads into EFER from vcpu->arch.efer
 * @vcpu: a vCPU of any VM, loaded
 * @unused: the trampoline's second argument
 * @rest: the rest of vmx_setup_uret_msrs, whose argument starts with the vCPU
 *
 * Besides set_efer, a new CPUID and the vCPU's creation get here.
 */
void frail_vcpu_setup_uret(struct kvm_vcpu *vcpu, unsigned long unused, unsigned long rest)
{
	int idx = srcu_read_lock(&frail_srcu);
	bool trap = traps(frail_vm_find_vcpu(vcpu), vcpu, vcpu->arch.efer);

	if (trap)
		vcpu->arch.efer &= ~EFER_SCE;
	frail_call_rest(vcpu, 0, rest);
	if (trap)
		vcpu->arch.efer |= EFER_SCE;
	srcu_read_unlock(&frail_srcu, idx);
}

/*
 * Makes a loaded vCPU trap or not, as vm->state says, through the hooks. One that runs a
 * guest of its guest changes when it leaves it, by a set_efer of KVM's own.
 *
 * Return: nothing of the state before is left.
 */
static bool sync_loaded(struct frail_vm *vm, struct kvm_vcpu *vcpu)
{
	/* For reading the guest's memory. vcpu_run() has given it up for the moment. */
	int idx = srcu_read_lock(&vm->kvm->srcu);

	kvmsym.ops->set_efer(vcpu, vcpu->arch.efer);
	if (kvmsym.intel)
		frail_vmx_follow(vm, vcpu);
	srcu_read_unlock(&vm->kvm->srcu, idx);
	return READ_ONCE(vm->state) == FRAIL_ARMED || !vm->vcpus[vcpu->vcpu_idx].trapping;
}

/* The same for a vCPU that no thread is running at the moment. */
static bool sync_idle(struct frail_vm *vm, struct kvm_vcpu *vcpu)
{
	bool done;

	if (!mutex_trylock(&vcpu->mutex))
		return false;
	kvmsym.vcpu_load(vcpu);
	done = sync_loaded(vm, vcpu);
	kvmsym.vcpu_put(vcpu);
	mutex_unlock(&vcpu->mutex);
	return done;
}

static void sync_on_thread(struct callback_head *work)
{
	struct frail_vcpu *fv = container_of(work, struct frail_vcpu, work);
	struct frail_vm *vm = fv->vm;
	struct kvm_vcpu *vcpu = kvm_get_vcpu(vm->kvm, fv - vm->vcpus);
	bool done;

	if (kvmsym.kvm_get_running_vcpu() == vcpu)
		done = sync_loaded(vm, vcpu);
	else
		done = sync_idle(vm, vcpu);

	/* The last use of @vm: it may be freed once this lock is dropped. */
	spin_lock(&vm->sync_lock);
	fv->work_queued = false;
	if (done)
		fv->synced = true;
	wake_up_all(&vm->sync_wait);
	spin_unlock(&vm->sync_lock);
}

/*
 * Asks the thread that runs the vCPU to bring it in line. TWA_SIGNAL takes it out
 * of guest mode or a halt; the thread sees no signal and KVM_RUN does not return.
 */
static void queue_on_thread(struct frail_vcpu *fv, struct kvm_vcpu *vcpu)
{
	struct task_struct *task;

	spin_lock(&fv->vm->sync_lock);
	if (fv->work_queued) {
		spin_unlock(&fv->vm->sync_lock);
		return;
	}
	fv->work_queued = true;
	spin_unlock(&fv->vm->sync_lock);

	task = frail_vcpu_thread(vcpu);
	if (task) {
		init_task_work(&fv->work, sync_on_thread);
		if (!kvmsym.task_work_add(task, &fv->work, TWA_SIGNAL)) {
			put_task_struct(task);
			return;
		}
		put_task_struct(task);
	}
	spin_lock(&fv->vm->sync_lock);
	fv->work_queued = false;
	spin_unlock(&fv->vm->sync_lock);
}

/* Every vCPU follows vm->state, and no work of ours is left on a thread. */
static bool all_synced(struct frail_vm *vm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	bool all = true;

	spin_lock(&vm->sync_lock);
	kvm_for_each_vcpu(i, vcpu, vm->kvm)
		all &= vm->vcpus[i].synced && !vm->vcpus[i].work_queued;
	spin_unlock(&vm->sync_lock);
	return all;
}

/* Brings each vCPU that does not follow vm->state in line, or asks its thread to. */
static void sync_step(struct frail_vm *vm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, vm->kvm) {
		struct frail_vcpu *fv = &vm->vcpus[i];

		if (READ_ONCE(fv->synced))
			continue;
		if (!sync_idle(vm, vcpu)) {
			queue_on_thread(fv, vcpu);
			continue;
		}
		spin_lock(&vm->sync_lock);
		fv->synced = true;
		spin_unlock(&vm->sync_lock);
	}
}

/* Brings all vCPUs in line with vm->state; false: some thread has not come round yet. */
static bool sync_vcpus(struct frail_vm *vm)
{
	unsigned long deadline = jiffies + SYNC_WAIT;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	spin_lock(&vm->sync_lock);
	kvm_for_each_vcpu(i, vcpu, vm->kvm)
		vm->vcpus[i].synced = false;
	spin_unlock(&vm->sync_lock);

	do {
		sync_step(vm);
		if (wait_event_timeout(vm->sync_wait, all_synced(vm), SYNC_RETRY))
			return true;
	} while (time_before(jiffies, deadline));
	return false;
}

/* Lets go of a VM whose vCPUs all run untrapped. */
static void vm_free(struct frail_vm *vm)
{
	mutex_lock(&vms_lock);
	hash_del_rcu(&vm->node);
	__clear_bit(vm->id % FRAIL_VM_SLOTS, slots);
	synchronize_rcu();
	synchronize_srcu(&vm->kvm->srcu);
	synchronize_srcu(&frail_srcu);
	mutex_unlock(&vms_lock);
	wake_up_all(&vms_gone);

	kvmsym.kvm_put_kvm(vm->kvm);
	kfree(rcu_dereference_protected(vm->layout, true));
	kvfree(rcu_dereference_protected(vm->data, true));
	kvfree(vm->tasks);
	kvfree(vm);
	/* The exit function waits for free_queue, so this code outlives the reference. */
	module_put(THIS_MODULE);
}

static void vm_free_work(struct work_struct *work)
{
	struct frail_vm *vm = container_of(to_delayed_work(work), struct frail_vm, free_work);

	if (!all_synced(vm)) {
		sync_step(vm);
		queue_delayed_work(free_queue, &vm->free_work, FREE_RETRY);
		return;
	}
	vm_free(vm);
}

/*
 * Closing the VM descriptor disarms. Once this returns no event of the VM is
 * reported; a vCPU that cannot be reached yet (its thread is stopped, say) goes
 * on being emulated until it can.
 */
static int vm_release(struct inode *inode, struct file *file)
{
	struct frail_vm *vm = file->private_data;

	WRITE_ONCE(vm->state, FRAIL_DISARMING);
	synchronize_srcu(&vm->kvm->srcu);
	sync_vcpus(vm);
	queue_delayed_work(free_queue, &vm->free_work, 0);
	return 0;
}

/**
 * frail_vm_new_kernel() - a guest's kernel got its first system call
 * @vm: its VM
 * @vcpu: the vCPU
 * @lstar: its LSTAR
 */
void frail_vm_new_kernel(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar)
{
	u64 gs = frail_msr(vcpu, MSR_KERNEL_GS_BASE);
	u64 cr3 = frail_cr3(vcpu);
	struct kvm_vcpu *other;
	unsigned long i;
	bool news;

	spin_lock(&vm->status_lock);
	news = vm->lstar != lstar;
	if (news) {
		WRITE_ONCE(vm->lstar, lstar);
		vm->kernel_gs_base = gs;
		vm->cr3 = cr3;
		vm->layout_valid = false;
		vm->generation++;
	}
	spin_unlock(&vm->status_lock);
	if (!news)
		return;
	frail_tasks_forget(vm);
	wake_up_interruptible(&vm->status_wait);
	if (kvmsym.intel)
		kvm_for_each_vcpu(i, other, vm->kvm)
			if (other != vcpu)
				queue_on_thread(&vm->vcpus[i], other);
}

/**
 * frail_set_blind() - a vCPU traps other ways into its kernel than before
 * @vm: its VM
 * @vcpu: the vCPU, loaded
 * @blind: those it does not trap, enum frail_entry
 *
 * May be called in atomic context.
 */
void frail_set_blind(struct frail_vm *vm, struct kvm_vcpu *vcpu, u32 blind)
{
	struct frail_vcpu *fv = &vm->vcpus[vcpu->vcpu_idx];
	u32 all = 0;
	int i;

	if (READ_ONCE(fv->blind) == blind)
		return;
	spin_lock(&vm->status_lock);
	WRITE_ONCE(fv->blind, blind);
	for (i = 0; i < atomic_read(&vm->kvm->online_vcpus); i++)
		all |= vm->vcpus[i].blind;
	if (all != vm->blind) {
		vm->blind = all;
		frail_report_coverage(vm, vcpu, frail_ways() & ~all, all);
	}
	spin_unlock(&vm->status_lock);
}

static __poll_t vm_poll(struct file *file, poll_table *wait)
{
	struct frail_vm *vm = file->private_data;

	poll_wait(file, &vm->status_wait, wait);
	return READ_ONCE(vm->generation) != READ_ONCE(vm->generation_seen) ? EPOLLPRI : 0;
}

static long vm_status(struct frail_vm *vm, struct frail_status __user *arg)
{
	struct frail_status s = {};
	struct kvm_vcpu *vcpu;
	unsigned long i;
	u32 size;

	if (get_user(size, &arg->size))
		return -EFAULT;
	if (size != sizeof(s))
		return -EINVAL;

	s.size = sizeof(s);
	s.vm = vm->id;
	kvm_for_each_vcpu(i, vcpu, vm->kvm) {
		const struct frail_vcpu *fv = &vm->vcpus[i];

		s.vcpus++;
		s.armed_vcpus += READ_ONCE(fv->trapping);
		s.enters += READ_ONCE(fv->enters);
		s.exits += READ_ONCE(fv->exits);
		s.refetches += READ_ONCE(fv->refetch_total);
		s.identity_misses += READ_ONCE(fv->identity_misses);
		s.rets_known += READ_ONCE(fv->rets_known);
		s.rets_unknown += READ_ONCE(fv->rets_unknown);
	}
	s.exits_mode = vm->exits;
	spin_lock(&vm->status_lock);
	s.generation = vm->generation;
	s.lstar = vm->lstar;
	s.kernel_gs_base = vm->kernel_gs_base;
	s.cr3 = vm->cr3;
	s.blind = vm->blind;
	s.covered = s.armed_vcpus ? frail_ways() & ~vm->blind : 0;
	vm->generation_seen = vm->generation;
	spin_unlock(&vm->status_lock);
	return copy_to_user(arg, &s, sizeof(s)) ? -EFAULT : 0;
}

static long vm_set_layout(struct frail_vm *vm, const struct frail_layout __user *arg)
{
	struct frail_layout *l, *old;
	long ret = 0;

	l = memdup_user(arg, sizeof(*l));
	if (IS_ERR(l))
		return PTR_ERR(l);
	if (l->size != sizeof(*l) ||
	    l->task_pid > LAYOUT_OFFSET_MAX || l->task_tgid > LAYOUT_OFFSET_MAX ||
	    l->task_comm > LAYOUT_OFFSET_MAX || l->task_stack > LAYOUT_OFFSET_MAX ||
	    !l->lstar || l->direct_map_size > LAYOUT_SPAN_MAX ||
	    l->stack_regs > LAYOUT_STACK_MAX || l->regs_ax >= l->regs_orig_ax ||
	    l->regs_orig_ax > LAYOUT_REGS_MAX || (l->levels != 4 && l->levels != 5)) {
		kfree(l);
		return -EINVAL;
	}

	mutex_lock(&vm->layout_lock);
	spin_lock(&vm->status_lock);
	if (l->lstar == vm->lstar)
		vm->layout_valid = false;
	else
		ret = -ESTALE;
	spin_unlock(&vm->status_lock);
	if (ret) {
		mutex_unlock(&vm->layout_lock);
		kfree(l);
		return ret;
	}
	old = rcu_replace_pointer(vm->layout, l, lockdep_is_held(&vm->layout_lock));
	spin_lock(&vm->status_lock);
	vm->layout_valid = l->lstar == vm->lstar;
	spin_unlock(&vm->status_lock);
	mutex_unlock(&vm->layout_lock);

	synchronize_srcu(&vm->kvm->srcu);
	kfree(old);
	return 0;
}

static long vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct frail_vm *vm = file->private_data;

	switch (cmd) {
	case FRAIL_IOC_STATUS:
		return vm_status(vm, (struct frail_status __user *)arg);
	case FRAIL_IOC_SET_LAYOUT:
		return vm_set_layout(vm, (const struct frail_layout __user *)arg);
	case FRAIL_IOC_SET_DATA:
		return frail_set_data(vm, (const struct frail_data_spec __user *)arg);
	case FRAIL_IOC_DESCRIBE:
		spin_lock(&vm->status_lock);
		WRITE_ONCE(vm->epoch, vm->epoch + 1);
		spin_unlock(&vm->status_lock);
		return 0;
	default:
		return -ENOTTY;
	}
}

static const struct file_operations vm_fops = {
	.owner = THIS_MODULE,
	.release = vm_release,
	.poll = vm_poll,
	.unlocked_ioctl = vm_ioctl,
	.llseek = noop_llseek,
};

static struct frail_vm *vm_alloc(struct kvm *kvm)
{
	struct frail_vm *vm = kvzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	int i;

	if (!vm)
		return NULL;
	vm->tasks = kvcalloc(FRAIL_TASK_BUCKETS, sizeof(*vm->tasks), GFP_KERNEL_ACCOUNT);
	if (!vm->tasks) {
		kvfree(vm);
		return NULL;
	}
	for (i = 0; i < FRAIL_TASK_BUCKETS; i++)
		spin_lock_init(&vm->tasks[i].lock);
	for (i = 0; i < KVM_MAX_VCPUS; i++)
		vm->vcpus[i].vm = vm;
	vm->kvm = kvm;
	vm->state = FRAIL_ARMED;
	spin_lock_init(&vm->sync_lock);
	spin_lock_init(&vm->status_lock);
	mutex_init(&vm->layout_lock);
	init_waitqueue_head(&vm->sync_wait);
	init_waitqueue_head(&vm->status_wait);
	INIT_DELAYED_WORK(&vm->free_work, vm_free_work);
	return vm;
}

static enum frail_state state_of(struct kvm *kvm)
{
	int idx = srcu_read_lock(&frail_srcu);
	struct frail_vm *vm = frail_vm_find(kvm);
	enum frail_state state = vm ? READ_ONCE(vm->state) : FRAIL_UNARMED;

	srcu_read_unlock(&frail_srcu, idx);
	return state;
}

/*
 * Whether the guest's CPU has what Frail's SYSCALL does not do: FRED, by which a kernel
 * takes system calls without LSTAR, or shadow stacks, whose pointer goes to an MSR.
 */
static enum frail_refusal cpu_refusal(struct kvm_vcpu *vcpu)
{
	unsigned long deadline = jiffies + CPUID_WAIT;
	enum frail_refusal refusal = FRAIL_REFUSAL_NONE;
	bool locked;
	int i;

	/*
	 * KVM replaces the list under the vCPU's mutex, until the vCPU has run. One that
	 * waits to be started by another holds the mutex all the time and has not run:
	 * it is passed over, the vCPU that starts it has the same CPUID.
	 */
	while (!(locked = mutex_trylock(&vcpu->mutex)) && vcpu->arch.last_vmentry_cpu == -1) {
		if (time_after(jiffies, deadline))
			return FRAIL_REFUSAL_NONE;
		cond_resched();
	}
	for (i = 0; i < vcpu->arch.cpuid_nent; i++) {
		const struct kvm_cpuid_entry2 *e = &vcpu->arch.cpuid_entries[i];

		if (e->function == 7 && e->index == 0 && (e->ecx & CPUID_7_0_ECX_SHSTK))
			refusal = FRAIL_REFUSAL_SHADOW_STACK;
		if (e->function == 7 && e->index == 1 && (e->eax & CPUID_7_1_EAX_FRED))
			refusal = FRAIL_REFUSAL_FRED;
	}
	if (locked)
		mutex_unlock(&vcpu->mutex);
	return refusal;
}

/* Why a VM cannot be traced. */
static enum frail_refusal refusal(struct kvm *kvm)
{
	enum frail_refusal why;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	if (frail_vm_is_protected(kvm))
		return FRAIL_REFUSAL_ENCRYPTED;
	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (vcpu->arch.guest_state_protected ||
		    (!kvmsym.intel && frail_svm_encrypted(vcpu)))
			return FRAIL_REFUSAL_ENCRYPTED;
		why = cpu_refusal(vcpu);
		if (why)
			return why;
	}
	return FRAIL_REFUSAL_NONE;
}

/* Gives a VM its id and the slot of it. Under vms_lock; false: all are taken. */
static bool take_id(struct frail_vm *vm)
{
	if (bitmap_full(slots, FRAIL_VM_SLOTS))
		return false;
	do
		last_id++;
	while (!last_id || test_bit(last_id % FRAIL_VM_SLOTS, slots));
	__set_bit(last_id % FRAIL_VM_SLOTS, slots);
	vm->id = last_id;
	return true;
}

/**
 * frail_arm() - arm the VM behind a KVM descriptor
 * @arm: FRAIL_IOC_ARM's argument
 *
 * Sets @arm->vm, or @arm->refusal. On return every vCPU that runs traps its system calls; one whose
 * thread is stopped does before it runs guest code again.
 *
 * Return: the VM descriptor, or an error as struct frail_arm documents.
 */
struct file *frail_arm(struct frail_arm *arm)
{
	struct file *kvm_file, *file;
	struct frail_vm *vm;
	struct kvm *kvm;
	int err;

	kvm_file = fget(arm->kvm_fd);
	if (!kvm_file)
		return ERR_PTR(-EBADF);
	if (!kvmsym.file_is_kvm(kvm_file)) {
		fput(kvm_file);
		return ERR_PTR(-EINVAL);
	}
	kvm = kvm_file->private_data;
	kvmsym.kvm_get_kvm(kvm);
	fput(kvm_file);

	arm->refusal = refusal(kvm);
	if (arm->refusal) {
		err = -EOPNOTSUPP;
		goto put_kvm;
	}
	vm = vm_alloc(kvm);
	if (!vm) {
		err = -ENOMEM;
		goto put_kvm;
	}
	vm->exits = arm->exits;

	if (state_of(kvm) == FRAIL_DISARMING)
		wait_event_killable_timeout(vms_gone, state_of(kvm) != FRAIL_DISARMING, GONE_WAIT);

	mutex_lock(&vms_lock);
	if (state_of(kvm) != FRAIL_UNARMED) {
		err = -EBUSY;
		goto unlock;
	}
	if (!take_id(vm)) {
		err = -ENOSPC;
		goto unlock;
	}
	file = anon_inode_getfile("frail-vm", &vm_fops, vm, O_RDWR);
	if (IS_ERR(file)) {
		err = PTR_ERR(file);
		__clear_bit(vm->id % FRAIL_VM_SLOTS, slots);
		goto unlock;
	}
	/* vm_free() drops it; the descriptor's own reference goes before that runs. */
	__module_get(THIS_MODULE);
	arm->vm = vm->id;
	hash_add_rcu(vms, &vm->node, (unsigned long)kvm);
	mutex_unlock(&vms_lock);

	sync_vcpus(vm);
	return file;

unlock:
	mutex_unlock(&vms_lock);
	kvfree(vm->tasks);
	kvfree(vm);
put_kvm:
	kvmsym.kvm_put_kvm(kvm);
	return ERR_PTR(err);
}

int frail_vms_init(void)
{
	free_queue = alloc_workqueue("frail", WQ_UNBOUND, 0);
	return free_queue ? 0 : -ENOMEM;
}

/* The module is unloaded only when no VM descriptor is open and no VM is left. */
void frail_vms_exit(void)
{
	destroy_workqueue(free_queue);
}

/* Waits for every thread below frail_vcpu_set_efer(), which may sleep there. */
void frail_vms_drain(void)
{
	synchronize_srcu(&frail_srcu);
}
