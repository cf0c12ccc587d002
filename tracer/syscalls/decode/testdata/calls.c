// SPDX-License-Identifier: Apache-2.0
/*
 * Makes the system calls that its arguments say, seven hexadecimal numbers for each: the
 * call's number and its arguments. Before them stands what is in its memory at 0x10000000,
 * in hexadecimal digits. It has no C library, so it makes no others but exit_group at its
 * end.
 */
typedef unsigned long ul;

#ifdef __x86_64__
static void call(const ul *a)
{
	register ul r10 __asm__("r10") = a[4];
	register ul r8 __asm__("r8") = a[5];
	register ul r9 __asm__("r9") = a[6];
	ul nr = a[0];

	__asm__ volatile("syscall" : "+a"(nr)
			 : "D"(a[1]), "S"(a[2]), "d"(a[3]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
}
#define EXIT_GROUP 231
__asm__(".globl _start\n_start: mov %rsp, %rdi; and $-16, %rsp; call run");
#else
void call(const ul *a);
__asm__("call:	push %ebp; push %ebx; push %esi; push %edi; mov 20(%esp), %eax;"
	"mov 4(%eax), %ebx; mov 8(%eax), %ecx; mov 12(%eax), %edx; mov 16(%eax), %esi;"
	"mov 20(%eax), %edi; mov 24(%eax), %ebp; mov (%eax), %eax; int $0x80;"
	"pop %edi; pop %esi; pop %ebx; pop %ebp; ret");
#define EXIT_GROUP 252
__asm__(".globl _start\n_start: mov %esp, %eax; push %eax; call run");
#endif

__attribute__((section(".memory"))) unsigned char memory[1 << 16] = { 1 };

static ul digit(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

__attribute__((used)) void run(ul *stack)
{
	ul args = stack[0] - 2;
	char **arg = (char **)(stack + 3);
	const char *hex = arg[-1];
	ul a[7] = { 0 };

	for (ul i = 0; hex[2 * i] && hex[2 * i + 1]; i++)
		memory[i] = digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]);

	for (; args >= 7; args -= 7) {
		for (int i = 0; i < 7; i++) {
			a[i] = 0;
			for (const char *s = *arg++; *s; s++)
				a[i] = a[i] << 4 | digit(*s);
		}
		call(a);
	}
	a[0] = EXIT_GROUP;
	a[1] = 0;
	call(a);
}
