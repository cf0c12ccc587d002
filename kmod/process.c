// SPDX-License-Identifier: GPL-2.0
/*
 * Who a thread is beyond its ids: what its task_struct leads to. The way there is long, so
 * it is gone once a thread, and once more when the key of what was found has changed.
 * Every step reads a bounded piece of guest RAM; what cannot be read is told as unknown.
 */
#include "frail.h"
#include "trace.h"

/* Steps up a directory tree, mounts included. */
#define MAX_STEPS 64

/* NAME_MAX of Linux. */
#define MAX_NAME 255

/* Hierarchies of cgroups that are looked at: of version 1, every controller may have its own. */
#define MAX_HIERARCHIES 32

/* Depth of pid namespaces: MAX_PID_NS_LEVEL. */
#define MAX_PID_LEVEL 32

/* struct path, vfsmount, qstr and hlist_bl_node begin alike in every Linux so far. */
#define PATH_MNT 0
#define PATH_DENTRY 8
#define VFSMOUNT_ROOT 0
#define QSTR_LEN_HIGH 32	/* of the first word */
#define QSTR_NAME 8
#define HASH_PPREV 8
#define UPID_SIZE 16

/* A path that grows at its front. */
struct path_buf {
	u8 *end;		/* behind its FRAIL_PATH_LEN bytes */
	unsigned int len;
	bool cut;
};

/* Reads a pointer of a structure, if where it is in it is known. */
static bool follow(struct frail_window *w, u64 base, u32 offset, u64 *to)
{
	return offset != FRAIL_NO_OFFSET && frail_read_word(w, base + offset, to);
}

/* Puts a name and a slash before the path; of a name that does not fit, its end. */
static bool prepend(struct frail_window *w, struct path_buf *p, u64 name, u64 len)
{
	unsigned int room = FRAIL_PATH_LEN - p->len, part = min_t(u64, len, room);

	if (!frail_read(w->vcpu, w->l, name + len - part, p->end - p->len - part, part))
		return false;
	p->len += part;
	if (len >= room) {
		p->cut = true;
		return true;
	}
	p->len++;
	p->end[-(int)p->len] = '/';
	return true;
}

/*
 * Moves a path to the front of its buffer and pads it.
 *
 * Return: of @known and @cut, which hold for it.
 */
static u32 finish(struct path_buf *p, u32 known, u32 cut)
{
	u8 *begin = p->end - FRAIL_PATH_LEN;

	if (!p->len && !p->cut)
		*(p->end - ++p->len) = '/';
	memmove(begin, p->end - p->len, p->len);
	memset(begin + p->len, 0, FRAIL_PATH_LEN - p->len);
	return p->cut ? known | cut : known;
}

/* The path of a dentry from the root of its mount namespace: Linux's prepend_path(). */
static bool exe_path(struct frail_window *w, u64 mnt, u64 dentry, struct path_buf *path)
{
	const struct frail_layout *l = w->l;
	u64 root, mount, up, hash_len, name;
	int i;

	if (l->dentry_name == FRAIL_NO_OFFSET || l->mount_mnt == FRAIL_NO_OFFSET)
		return false;
	for (i = 0; i < MAX_STEPS && !path->cut; i++) {
		if (!frail_read_word(w, mnt + VFSMOUNT_ROOT, &root))
			return false;
		if (dentry == root) {
			mount = mnt - l->mount_mnt;
			if (!follow(w, mount, l->mount_parent, &up))
				return false;
			if (up == mount)
				return true;
			if (!follow(w, mount, l->mount_mountpoint, &dentry))
				return false;
			mnt = up + l->mount_mnt;
			continue;
		}
		if (!follow(w, dentry, l->dentry_parent, &up) ||
		    !frail_read_word(w, dentry + l->dentry_name, &hash_len) ||
		    !frail_read_word(w, dentry + l->dentry_name + QSTR_NAME, &name) ||
		    hash_len >> QSTR_LEN_HIGH > MAX_NAME ||
		    !prepend(w, path, name, hash_len >> QSTR_LEN_HIGH))
			return false;
		/* In no directory: a memfd. */
		if (up == dentry)
			return true;
		dentry = up;
	}
	path->cut = true;
	return true;
}

static void describe_exe(struct frail_window *w, u64 mm, struct frail_process *p)
{
	struct path_buf path = { .end = p->exe + FRAIL_PATH_LEN };
	u64 file, mnt, dentry, pprev;

	if (!mm || !follow(w, mm, w->l->mm_exe_file, &file) || !file ||
	    !follow(w, file, w->l->file_path, &mnt) ||
	    !frail_read_word(w, file + w->l->file_path + PATH_DENTRY, &dentry))
		return;
	if (!exe_path(w, mnt, dentry, &path)) {
		memset(p->exe, 0, sizeof(p->exe));
		return;
	}
	p->known |= finish(&path, FRAIL_PROCESS_EXE, FRAIL_PROCESS_EXE_CUT);
	if (w->l->dentry_hash != FRAIL_NO_OFFSET &&
	    frail_read_word(w, dentry + w->l->dentry_hash + HASH_PPREV, &pprev) && !pprev)
		p->known |= FRAIL_PROCESS_EXE_DELETED;
}

/* The length of a string in guest RAM, or -1. */
static int string_length(struct frail_window *w, u64 at)
{
	u64 word, zeros;
	int len;

	for (len = 0; len <= MAX_NAME; len += sizeof(word)) {
		if (!frail_read_word(w, at + len, &word))
			return -1;
		zeros = (word - REPEAT_BYTE(0x01)) & ~word & REPEAT_BYTE(0x80);
		if (zeros)
			return len + __ffs64(zeros) / BITS_PER_BYTE;
	}
	return -1;
}

static bool group_path(struct frail_window *w, u64 cgroup, struct path_buf *path)
{
	const struct frail_layout *l = w->l;
	u64 node, up, name;
	int i, len;

	if (!follow(w, cgroup, l->cgroup_node, &node))
		return false;
	for (i = 0; i < MAX_STEPS && !path->cut; i++) {
		if (!follow(w, node, l->node_parent, &up))
			return false;
		if (!up)
			return true;
		if (!follow(w, node, l->node_name, &name))
			return false;
		len = string_length(w, name);
		if (len < 0 || !prepend(w, path, name, len))
			return false;
		node = up;
	}
	path->cut = true;
	return true;
}

/*
 * Puts the path of a task's cgroup in another hierarchy in the place of the one in the
 * unified one if it is longer: a container's runtime has made one there that has its id.
 */
static noinline_for_stack
bool other_groups(struct frail_window *w, u64 cgroups, u64 unified, struct path_buf *path)
{
	const struct frail_layout *l = w->l;
	u64 head, at, cgroup;
	u8 buf[FRAIL_PATH_LEN];
	int i;

	if (l->css_set_links == FRAIL_NO_OFFSET || l->link_cgroup == FRAIL_NO_OFFSET ||
	    l->link_node == FRAIL_NO_OFFSET)
		return true;
	head = cgroups + l->css_set_links;
	if (!frail_read_word(w, head, &at))
		return false;
	for (i = 0; i < MAX_HIERARCHIES && at != head; i++) {
		struct path_buf other = { .end = buf + FRAIL_PATH_LEN };

		if (!frail_read_word(w, at - l->link_node + l->link_cgroup, &cgroup))
			return false;
		if (cgroup != unified) {
			if (!group_path(w, cgroup, &other))
				return false;
			if (other.len > path->len) {
				memcpy(path->end - other.len, other.end - other.len, other.len);
				path->len = other.len;
				path->cut = other.cut;
			}
		}
		if (!frail_read_word(w, at, &at))
			return false;
	}
	return true;
}

static void describe_cgroup(struct frail_window *w, u64 cgroups, struct frail_process *p)
{
	struct path_buf path = { .end = p->cgroup + FRAIL_PATH_LEN };
	u64 unified;

	if (!cgroups || !follow(w, cgroups, w->l->css_set_cgroup, &unified) ||
	    !group_path(w, unified, &path) || !other_groups(w, cgroups, unified, &path)) {
		memset(p->cgroup, 0, sizeof(p->cgroup));
		return;
	}
	p->known |= finish(&path, FRAIL_PROCESS_CGROUP, FRAIL_PROCESS_CGROUP_CUT);
}

static void describe_ids(struct frail_window *w, u64 task, const struct frail_task_key *key,
			 struct frail_process *p)
{
	const struct frail_layout *l = w->l;
	struct {
		u32 uid, gid, suid, sgid, euid, egid;
	} cred;
	u64 word, pid, level;

	if (key->parent && follow(w, key->parent, l->task_tgid, &word)) {
		p->ppid = (s32)word;
		p->known |= FRAIL_PROCESS_PARENT;
	}
	if (key->cred && l->cred_uid != FRAIL_NO_OFFSET &&
	    frail_read(w->vcpu, l, key->cred + l->cred_uid, &cred, sizeof(cred))) {
		p->uid = cred.uid;
		p->gid = cred.gid;
		p->euid = cred.euid;
		p->egid = cred.egid;
		p->known |= FRAIL_PROCESS_CRED;
	}
	if (l->task_start != FRAIL_NO_OFFSET) {
		p->start = key->start;
		p->known |= FRAIL_PROCESS_START;
	}
	if (follow(w, task, l->task_thread_pid, &pid) && pid &&
	    follow(w, pid, l->pid_level, &level) && (u32)level <= MAX_PID_LEVEL &&
	    l->pid_numbers != FRAIL_NO_OFFSET &&
	    frail_read_word(w, pid + l->pid_numbers + (u32)level * UPID_SIZE, &word)) {
		p->ns_pid = (s32)word;
		p->known |= FRAIL_PROCESS_NS_PID;
	}
}

/**
 * frail_describe() - tell who a thread is
 * @vm: the VM
 * @vcpu: the vCPU that the thread is on
 * @l: the guest kernel's layout
 * @ev: an event of the thread, with its identity
 * @key: what frail_identify() found
 *
 * Return: the description's serial number, not 0.
 */
noinline_for_stack
u64 frail_describe(struct frail_vm *vm, struct kvm_vcpu *vcpu, const struct frail_layout *l,
		   const struct frail_event *ev, const struct frail_task_key *key)
{
	struct frail_window w = { .vcpu = vcpu, .l = l };
	struct frail_process p = {
		.head = {
			.vm = ev->vm,
			.vcpu = ev->vcpu,
			.kind = FRAIL_EVENT_PROCESS,
			.flags = FRAIL_EVENT_IDENTITY,
			.cr3 = ev->cr3,
			.task = ev->task,
			.who = atomic64_inc_return(&vm->descriptions),
			.pid = ev->pid,
			.tgid = ev->tgid,
		},
	};

	memcpy(p.head.comm, ev->comm, sizeof(p.head.comm));
	describe_ids(&w, ev->task, key, &p);
	describe_exe(&w, key->mm, &p);
	describe_cgroup(&w, key->cgroups, &p);
	frail_trace(guest_process, &p.head);
	return p.head.who;
}
