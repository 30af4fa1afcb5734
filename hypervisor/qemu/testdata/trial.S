	.code32
	.globl _start
_start:
	cli
	# page tables at 0x200000: one GiB, identity, pages of 2 MiB
	mov $0x200000, %edi
	xor %eax, %eax
	mov $0xc00, %ecx
	rep stosl
	movl $0x201003, 0x200000
	movl $0x202003, 0x201000
	mov $0x202000, %edi
	mov $0x83, %eax
	mov $512, %ecx
1:	mov %eax, (%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 1b
	mov $0x200000, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x20, %eax
	mov %eax, %cr4
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	lgdt gdtr
	ljmp $8, $long
	.code64
long:	mov $16, %eax
	mov %eax, %ds
	mov %eax, %ss
	mov %eax, %es
	# work: 20 million turns that write to 4 MiB of memory
	mov $20000000, %ecx
2:	mov %ecx, %eax
	and $0xfffff, %eax
	mov %ecx, 0x400000(,%rax,4)
	dec %ecx
	jnz 2b
	mov $word, %esi
	mov $0x3f8, %edx
3:	lodsb
	test %al, %al
	jz 4f
	out %al, %dx
	jmp 3b
4:	xor %eax, %eax
	out %al, $0xf4
5:	hlt
	jmp 5b
word:	.asciz "understudy-ok"
	.balign 8
gdt:	.quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdtr:	.word 23
	.long gdt
