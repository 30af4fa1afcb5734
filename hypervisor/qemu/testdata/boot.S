	.code16
	.globl _start
_start:
	cli
	xor %ax, %ax
	mov %ax, %ds
	mov $0x3f8, %dx
	mov $word, %si
1:	lodsb
	test %al, %al
	jz 2f
	out %al, %dx
	jmp 1b
2:	incl 0x1000
	jmp 2b
word:	.asciz "from disk\n"
	.org 510
	.word 0xaa55
