	.code32
	.globl _start
_start:
	cli
	mov $0x300000, %esp
	movl $0, 0x200000
	movl $0, 0x200004
	mov $boot, %esi
	call print
1:	addl $1, 0x200000
	adcl $0, 0x200004
	mov 0x200000, %eax
	mov %eax, %ecx
	and $1023, %ecx
	shl $12, %ecx
	mov %eax, 0x400000(%ecx)
	test $0x3ff, %eax
	jnz 1b
	# a key?
	in $0x64, %al
	cmp $0xff, %al
	je 1b
	test $1, %al
	jz 1b
	in $0x60, %al
	cmp $0x19, %al	# p
	je off
	cmp $0x13, %al	# r
	je reset
	cmp $0x25, %al	# k
	jne 1b
	mov $0x505, %dx	# pvpanic
	mov $1, %al
	out %al, %dx
	jmp 1b
off:	mov $0x604, %dx
	mov $0x2000, %ax
	out %ax, %dx
	jmp 1b
reset:	mov $0xcf9, %dx
	mov $2, %al
	out %al, %dx
	mov $6, %al
	out %al, %dx
	jmp 1b
print:	mov $0x3f8, %dx
2:	lodsb
	test %al, %al
	jz 3f
	out %al, %dx
	jmp 2b
3:	ret
boot:	.asciz "boot\n"
