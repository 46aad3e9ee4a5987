/* The init of the boot benchmark: asks for a reset at once, so that the VM's process ends when a
 * boot is over. No libc: this should cost nothing. */

void _start(void)
{
	/* reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2A, LINUX_REBOOT_CMD_RESTART, 0) */
	register long nothing __asm__("r10") = 0;
	long result = 169;

	__asm__ volatile("syscall"
			 : "+a"(result)
			 : "D"(0xfee1deadL), "S"(672274793L), "d"(0x01234567L), "r"(nothing)
			 : "rcx", "r11", "memory");
	for (;;)
		;
}
