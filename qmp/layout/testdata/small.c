// SPDX-License-Identifier: Apache-2.0

// Source of small.elf, an ELF file with what an import of a kernel looks for:
//
//	clang -g -Os -ffreestanding -nostdlib -static -Wl,-e,0 -Wl,-z,noseparate-code \
//		-Wl,--build-id=0x0123456789012345678901234567890123456789 -o small.elf small.c

struct list_head { struct list_head *next, *prev; };
struct signal_struct { int a[4]; struct list_head thread_head; };
struct pt_regs { unsigned long r[10], ax, s[4], orig_ax, e[5]; };
union thread_union { unsigned long stack[2048]; };
struct task_struct { int flags : 3; union { struct { int pid, tgid; }; long both; }; void *stack; struct list_head tasks, thread_node; struct signal_struct *signal; char comm[16]; enum { A, B } state; };
struct task_struct init_task __attribute__((section(".init"))); struct pt_regs regs; struct signal_struct signals; union thread_union *stack;
void entry_SYSCALL_64(void) {} void _stext(void) {} long init_top_pgt[4], current_task;
