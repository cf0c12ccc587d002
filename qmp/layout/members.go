// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
)

// Member is where a member lies in its structure, and how large it is, in bytes.
type Member struct {
	Offset, Size uint32
}

// optionalMembers are what [Layout.Processes] and [Layout.KernelLog] follow, by
// structure. A member that was renamed is "new|old"; it goes by the new name. One
// without a name is the structure itself. What a kernel lacks, or has in another
// size, is unknown to a layout, and so is what depends on it.
var optionalMembers = []struct {
	structure, member string
	size              uint32 // 0: any
}{
	{"task_struct", "flags", 4},
	{"task_struct", "__state|state", 0}, // long before 5.14
	{"task_struct", "exit_state", 4},
	{"task_struct", "real_parent", 8},
	{"task_struct", "start_boottime", 8},
	{"task_struct", "mm", 8},
	{"task_struct", "real_cred", 8},
	{"task_struct", "thread_pid", 8},
	{"task_struct", "nsproxy", 8},
	{"task_struct", "cgroups", 8},

	{"mm_struct", "pgd", 8},
	{"mm_struct", "arg_start", 8},
	{"mm_struct", "arg_end", 8},
	{"mm_struct", "exe_file", 8},

	{"file", "f_path", 16},
	{"path", "mnt", 8},
	{"path", "dentry", 8},
	{"dentry", "d_parent", 8},
	{"dentry", "d_name", 16},
	{"dentry", "d_hash", 16},
	{"hlist_bl_node", "pprev", 8},
	{"qstr", "len", 4},
	{"qstr", "name", 8},
	{"mount", "mnt", 0},
	{"mount", "mnt_parent", 8},
	{"mount", "mnt_mountpoint", 8},
	{"vfsmount", "mnt_root", 8},

	{"cred", "uid", 4},
	{"cred", "gid", 4},
	{"cred", "euid", 4},

	{"pid", "level", 4},
	{"pid", "numbers", 0},
	{"upid", "", 0},
	{"upid", "nr", 4},
	{"upid", "ns", 8},
	{"pid_namespace", "ns", 0},
	{"mnt_namespace", "ns", 0},
	{"ns_common", "inum", 4},
	{"nsproxy", "mnt_ns", 8},

	{"css_set", "dfl_cgrp", 8},
	{"css_set", "cgrp_links", 16},
	{"cgrp_cset_link", "cgrp", 8},
	{"cgrp_cset_link", "cgrp_link", 16},
	{"list_head", "next", 8},
	{"cgroup", "kn", 8},
	{"kernfs_node", "__parent|parent", 8}, // since 6.15
	{"kernfs_node", "name", 8},

	{"printk_ringbuffer", "desc_ring", 0},
	{"printk_ringbuffer", "text_data_ring", 0},
	{"prb_desc_ring", "count_bits", 4},
	{"prb_desc_ring", "descs", 8},
	{"prb_desc_ring", "infos", 8},
	{"prb_desc_ring", "head_id", 8},
	{"prb_desc_ring", "tail_id", 8},
	{"prb_data_ring", "size_bits", 4},
	{"prb_data_ring", "data", 8},
	{"prb_desc", "", 0},
	{"prb_desc", "state_var", 8},
	{"prb_desc", "text_blk_lpos", 16},
	{"prb_data_blk_lpos", "begin", 8},
	{"prb_data_blk_lpos", "next", 8},
	{"printk_info", "", 0},
	{"printk_info", "seq", 8},
	{"printk_info", "ts_nsec", 8},
	{"printk_info", "text_len", 2},
	{"printk_info", "facility", 1},
	{"printk_info", "flags", 0}, // and the level: bits of one byte
	{"printk_info", "caller_id", 4},
}

// maxMemberOffset bounds offsets and sizes of what is followed: the largest is
// task_struct's, of some 14 KiB with every debugging option.
const maxMemberOffset = 64 << 10

// memberTypes are the types of a kernel, as [btfTypes] has them.
type memberTypes interface {
	find(names ...string) map[string]uint32
	member(id uint32, name string) (offset, typ uint32, err error)
	sizeof(id uint32) (uint64, error)
}

// memberStructures returns the structures that optionalMembers are of.
func memberStructures() []string {
	var names []string
	for _, m := range optionalMembers {
		if !slices.Contains(names, m.structure) {
			names = append(names, m.structure)
		}
	}
	return names
}

// takeMembers returns which of optionalMembers there are, by "structure.member".
func takeMembers(types memberTypes) map[string]Member {
	ids := types.find(memberStructures()...)
	out := make(map[string]Member)
	for _, m := range optionalMembers {
		id, ok := ids[m.structure]
		if !ok {
			continue
		}
		total, err := types.sizeof(id)
		if err != nil || total > maxMemberOffset {
			continue
		}
		if m.member == "" {
			out[m.structure] = Member{Size: uint32(total)}
			continue
		}
		spellings := strings.Split(m.member, "|")
		for _, name := range spellings {
			offset, typ, err := types.member(id, name)
			if err != nil {
				continue
			}
			size, err := types.sizeof(typ)
			if err != nil || uint64(offset)+size > total || m.size != 0 && size != uint64(m.size) {
				continue
			}
			out[m.structure+"."+spellings[0]] = Member{Offset: offset, Size: uint32(size)}
			break
		}
	}
	return out
}

// Members yields the members that Processes and KernelLog follow, as
// "structure.member", in order of their names. Those that the kernel lacks are not
// among them; a structure alone is there with its size.
func (l *Layout) Members() iter.Seq2[string, Member] {
	return func(yield func(string, Member) bool) {
		for _, name := range slices.Sorted(maps.Keys(l.members)) {
			if !yield(name, l.members[name]) {
				return
			}
		}
	}
}

// follower reads structures by the names of their members. The first error stays
// in err; after it everything is read as zero.
type follower struct {
	l   *Layout
	sp  *space
	err error
}

func (f *follower) fail(err error) {
	if f.err == nil {
		f.err = err
	}
}

// member returns where a member lies.
func (f *follower) member(name string) Member {
	m, ok := f.l.members[name]
	if !ok {
		f.fail(fmt.Errorf("the kernel has no %s that is known", name))
	}
	return m
}

// read fills p from va, which is part of what.
func (f *follower) read(p []byte, va uint64, what string) {
	if f.err == nil && va < kernelHalf {
		f.fail(fmt.Errorf("read %s: %#x is no kernel address", what, va))
	}
	if f.err != nil {
		clear(p)
		return
	}
	if err := f.sp.read(p, va); err != nil {
		clear(p)
		f.fail(fmt.Errorf("read %s: %w", what, err))
	}
}

// number returns the value of a member of at most 8 bytes of the structure at va.
func (f *follower) number(va uint64, name string) uint64 {
	m := f.member(name)
	var b [8]byte
	if int(m.Size) > len(b) {
		f.fail(fmt.Errorf("%s has %d bytes", name, m.Size))
		return 0
	}
	f.read(b[:m.Size], va+uint64(m.Offset), name)
	return littleEndian(b[:m.Size])
}

// pointer returns the value of a member that points into the kernel.
func (f *follower) pointer(va uint64, name string) uint64 {
	v := f.number(va, name)
	if f.err == nil && v < kernelHalf {
		f.fail(fmt.Errorf("%s of %#x leads to %#x", name, va, v))
	}
	return v
}

// cstring returns the NUL-terminated string at va, of at most limit bytes without
// the NUL.
func (f *follower) cstring(va uint64, limit int, what string) string {
	var out []byte
	for f.err == nil {
		// Up to the page's end: there may be nothing behind it.
		n := min(int(pageSize-va%pageSize), limit+1-len(out))
		b := make([]byte, n)
		f.read(b, va, what)
		for i, c := range b {
			if c == 0 {
				return string(append(out, b[:i]...))
			}
		}
		out = append(out, b...)
		va += uint64(n)
		if len(out) > limit {
			f.fail(fmt.Errorf("%s is longer than %d bytes", what, limit))
		}
	}
	return ""
}

// littleEndian returns the number in at most 8 bytes.
func littleEndian(b []byte) uint64 {
	var v uint64
	for i, c := range b {
		v |= uint64(c) << (8 * i)
	}
	return v
}
