// SPDX-License-Identifier: GPL-2.0
/*
 * What arguments of a guest's calls point to. The guest chooses the pointers and what is
 * there: it is read by the vCPU's own page table with a user's rights, some bytes, once.
 */
#include <linux/mm.h>
#include <linux/uaccess.h>
#include <asm/processor-flags.h>

#include "frail.h"
#include "trace.h"

/* The first number of a call that only x32 has. */
#define FIRST_X32	512

/* Strings of an array, and parts of a vector, that are read. */
#define STRINGS_MAX	32
#define PARTS_MAX	8

/* What follows a string of an array: a NUL, and whether it was cut. */
#define STRING_END	2

/*
 * Reads memory of the guest's user: in the lower half of addresses, as its kernel would. An
 * address that is not canonical is none, though the page table may lead somewhere.
 */
static bool read_user(struct kvm_vcpu *vcpu, u64 addr, void *buf, unsigned int len)
{
	u64 end = BIT_ULL(vcpu->arch.cr4 & X86_CR4_LA57 ? 56 : 47);

	return addr < end && len <= end - addr && frail_read_user(vcpu, addr, buf, len);
}

/* Adds bytes of the guest to a piece: as many as there is room for and can be read. */
static void add(struct kvm_vcpu *vcpu, struct frail_data *d, struct frail_piece *p, u64 addr,
		u64 len)
{
	u8 *to = d->bytes + d->len;
	unsigned int room = FRAIL_DATA_LEN - d->len, first;

	if (len > room) {
		p->flags |= FRAIL_PIECE_CUT;
		len = room;
	}
	if (!len)
		return;
	/* What is before a page that cannot be read is told. */
	first = min_t(unsigned int, len, PAGE_SIZE - offset_in_page(addr));
	if (!read_user(vcpu, addr, to, first)) {
		p->flags |= FRAIL_PIECE_FAULT;
		return;
	}
	if (first < len && !read_user(vcpu, addr + first, to + first, len - first)) {
		p->flags |= FRAIL_PIECE_FAULT;
		len = first;
	}
	p->len += len;
	d->len += len;
}

/* Adds @len bytes, or as many as are wanted of them. */
static void add_some(struct kvm_vcpu *vcpu, struct frail_data *d, struct frail_piece *p, u64 addr,
		     u64 len, unsigned int max)
{
	if (len > max) {
		p->flags |= FRAIL_PIECE_CUT;
		len = max;
	}
	add(vcpu, d, p, addr, len);
}

/* Adds a string; what was read of memory behind it is taken off again. */
static void add_string(struct kvm_vcpu *vcpu, struct frail_data *d, struct frail_piece *p, u64 addr,
		       unsigned int max)
{
	unsigned int len = p->len;
	u16 flags = p->flags;
	u8 *from = d->bytes + d->len, *end;

	/* One more: a NUL there says that it is whole. */
	add(vcpu, d, p, addr, max + 1);
	end = memchr(from, 0, p->len - len);
	if (end) {
		p->flags = flags;
		p->len = len + (end - from);
	} else if (p->len - len > max) {
		p->len = len + max;
		p->flags |= FRAIL_PIECE_CUT;
	}
	d->len = from - d->bytes + p->len - len;
}

/* An array of pointers to strings, 4 or 8 bytes each, that NULL ends. */
static void add_strings(struct kvm_vcpu *vcpu, struct frail_data *d, struct frail_piece *p, u64 addr,
			unsigned int max, unsigned int word)
{
	int i;

	for (i = 0; i < STRINGS_MAX && !(p->flags & FRAIL_PIECE_FAULT); i++) {
		u64 at = 0;

		if (!read_user(vcpu, addr + i * word, &at, word)) {
			p->flags |= FRAIL_PIECE_FAULT;
			return;
		}
		if (!at)
			return;
		if (FRAIL_DATA_LEN - d->len < STRING_END)
			break;
		add_string(vcpu, d, p, at, min_t(unsigned int, max, FRAIL_DATA_LEN - d->len - STRING_END));
		d->bytes[d->len++] = 0;
		d->bytes[d->len++] = !!(p->flags & FRAIL_PIECE_CUT);
		p->len += STRING_END;
		p->flags &= ~FRAIL_PIECE_CUT;
	}
	p->flags |= FRAIL_PIECE_CUT;
}

/* An array of struct iovec, whose members have 4 or 8 bytes. */
static void add_vector(struct kvm_vcpu *vcpu, struct frail_data *d, struct frail_piece *p, u64 addr,
		       u64 count, unsigned int max, unsigned int word)
{
	u64 i;

	for (i = 0; i < count && !(p->flags & FRAIL_PIECE_FAULT); i++) {
		struct {
			u64 base, len, told;
		} part = {};
		unsigned int before, at = d->len;

		if (i == PARTS_MAX || FRAIL_DATA_LEN - d->len < sizeof(part)) {
			p->flags |= FRAIL_PIECE_CUT;
			return;
		}
		if (!read_user(vcpu, addr + i * 2 * word, &part.base, word) ||
		    !read_user(vcpu, addr + (i * 2 + 1) * word, &part.len, word)) {
			p->flags |= FRAIL_PIECE_FAULT;
			return;
		}
		d->len += sizeof(part);
		p->len += sizeof(part);
		before = p->len;
		/* That a part is cut is told by its length. */
		add(vcpu, d, p, part.base, min_t(u64, part.len, max));
		p->flags &= ~FRAIL_PIECE_CUT;
		part.told = p->len - before;
		memcpy(d->bytes + at, &part, sizeof(part));
	}
}

static void follow(struct kvm_vcpu *vcpu, struct frail_data *d, struct frail_piece *p,
		   const struct frail_read *read, const u64 *args, s64 ret, unsigned int word)
{
	u64 addr = args[read->arg], count = args[read->count];
	u32 pointed;

	p->arg = read->arg;
	p->kind = read->kind;
	switch (read->kind) {
	case FRAIL_READ_STRING:
		add_string(vcpu, d, p, addr, read->max);
		break;
	case FRAIL_READ_BYTES:
		add_some(vcpu, d, p, addr, read->unit, read->max);
		break;
	case FRAIL_READ_COUNTED:
		/* More than can be wanted is enough, and does not overflow. */
		add_some(vcpu, d, p, addr, min_t(u64, count, FRAIL_DATA_LEN + 1) * read->unit,
			 read->max);
		break;
	case FRAIL_READ_RETURNED:
		add_some(vcpu, d, p, addr, min_t(u64, ret, FRAIL_DATA_LEN + 1) * read->unit,
			 read->max);
		break;
	case FRAIL_READ_POINTED:
		if (read_user(vcpu, count, &pointed, sizeof(pointed)))
			add_some(vcpu, d, p, addr, pointed, read->max);
		else
			p->flags |= FRAIL_PIECE_FAULT;
		break;
	case FRAIL_READ_STRINGS:
		add_strings(vcpu, d, p, addr, read->max, word);
		break;
	case FRAIL_READ_VECTOR:
		add_vector(vcpu, d, p, addr, count, read->max, word);
		break;
	}
}

/**
 * frail_reads_of() - what is to be read of a call's memory
 * @vm: its VM
 * @vcpu: the vCPU; kvm->srcu is held for as long as the result is used
 * @nr: the call's number
 * @code64: of x86-64's calls, or of i386's
 *
 * Return: the reads, or NULL if there are none.
 */
const struct frail_reads *frail_reads_of(struct frail_vm *vm, struct kvm_vcpu *vcpu, s64 nr,
					 bool code64)
{
	const struct frail_data_spec *spec = srcu_dereference(vm->data, &vcpu->kvm->srcu);
	const struct frail_reads *reads;
	u32 index = (u32)nr;

	if (likely(!spec))
		return NULL;
	if (code64)
		index &= ~FRAIL_X32_BIT;
	if (index >= FRAIL_DATA_CALLS)
		return NULL;
	reads = code64 ? &spec->calls64[index] : &spec->calls32[index];
	return reads->read[0].kind == FRAIL_READ_NONE ? NULL : reads;
}

/**
 * frail_tell_data() - tell an event with what the call's arguments point to
 * @vcpu: the vCPU, loaded; may sleep
 * @ev: the event
 * @reads: what to read
 * @args: the call's arguments
 * @code64: the call is one of x86-64's, not of i386's
 *
 * Without the data, if there is nothing to read at this event.
 */
noinline_for_stack
void frail_tell_data(struct kvm_vcpu *vcpu, const struct frail_event *ev,
		     const struct frail_reads *reads, const u64 *args, bool code64)
{
	bool exit = ev->kind == FRAIL_EVENT_EXIT;
	/* x32's own calls have structures of i386. */
	bool narrow = !code64 || ((u32)ev->nr & ~FRAIL_X32_BIT) >= FIRST_X32;
	struct frail_data d;
	int i, pieces = 0;

	d.head = *ev;
	d.len = 0;
	d.pad = 0;
	memset(d.piece, 0, sizeof(d.piece));
	for (i = 0; i < FRAIL_READS; i++) {
		const struct frail_read *read = &reads->read[i];

		if (read->kind == FRAIL_READ_NONE)
			break;
		/* NULL is told as what it is, by the argument. */
		if (read->exit != exit || !args[read->arg])
			continue;
		follow(vcpu, &d, &d.piece[pieces++], read, args, ev->ret, narrow ? 4 : 8);
	}
	if (pieces) {
		d.head.flags |= FRAIL_EVENT_DATA;
		/* A reader that takes a little more than @len gets nothing of the host's. */
		memset(d.bytes + d.len, 0, FRAIL_DATA_LEN - d.len);
	}
	if (exit)
		frail_trace(guest_sys_exit, &d.head);
	else
		frail_trace(guest_sys_enter, &d.head);
}

static bool valid_read(const struct frail_read *r)
{
	return r->kind <= FRAIL_READ_VECTOR && r->arg < 6 && r->count < 6 && r->exit <= 1 &&
	       r->max <= FRAIL_DATA_LEN && (r->kind != FRAIL_READ_RETURNED || r->exit);
}

/**
 * frail_set_data() - FRAIL_IOC_SET_DATA
 * @vm: the VM
 * @arg: the specification
 *
 * Return: 0, or a negative errno as struct frail_data_spec documents.
 */
long frail_set_data(struct frail_vm *vm, const struct frail_data_spec __user *arg)
{
	struct frail_data_spec *spec, *old;
	const struct frail_read *read;
	bool any = false;
	int i;

	spec = vmemdup_user(arg, sizeof(*spec));
	if (IS_ERR(spec))
		return PTR_ERR(spec);
	BUILD_BUG_ON(sizeof(*spec) != 8 + 2 * FRAIL_DATA_CALLS * sizeof(struct frail_reads));
	read = spec->calls64[0].read;
	for (i = 0; i < 2 * FRAIL_DATA_CALLS * FRAIL_READS; i++) {
		if (spec->size != sizeof(*spec) || spec->pad || !valid_read(&read[i])) {
			kvfree(spec);
			return -EINVAL;
		}
		any |= read[i].kind != FRAIL_READ_NONE;
	}
	if (!any) {
		kvfree(spec);
		spec = NULL;
	}
	mutex_lock(&vm->layout_lock);
	old = rcu_replace_pointer(vm->data, spec, lockdep_is_held(&vm->layout_lock));
	mutex_unlock(&vm->layout_lock);
	synchronize_srcu(&vm->kvm->srcu);
	kvfree(old);
	return 0;
}
