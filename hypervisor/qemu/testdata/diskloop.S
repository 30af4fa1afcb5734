# A boot sector that says "from disk" on the serial port, then for ever counts
# at 0x1000, writes the count to sector 8 of the disk it was booted from, reads
# it back and compares. It says "wrong" and stands still if it is not the same.
	.code16
	.globl _start
_start:
	cli
	cld
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x7c00, %sp
	mov %dl, drive
	sti
	mov $word, %si
	call say
1:	incl 0x1000
	mov 0x1000, %eax
	mov %eax, 0x2000
	mov $0x43, %ah
	movw $0x2000, packet+4
	call disk
	movw $0x3000, packet+4
	mov $0x42, %ah
	call disk
	mov 0x3000, %eax
	cmp 0x1000, %eax
	je 1b
2:	mov $wrong, %si
	call say
3:	hlt
	jmp 3b
disk:	mov $0, %al
	mov drive, %dl
	mov $packet, %si
	int $0x13
	jc 2b
	ret
say:	mov $0x3f8, %dx
4:	lodsb
	test %al, %al
	jz 5f
	out %al, %dx
	jmp 4b
5:	ret
drive:	.byte 0
word:	.asciz "from disk\n"
wrong:	.asciz "wrong\n"
	.balign 4
packet:	.byte 16, 0
	.word 1, 0, 0
	.quad 8
	.org 510
	.word 0xaa55
