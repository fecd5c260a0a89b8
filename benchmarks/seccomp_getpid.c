/*
 * How long a system call takes under a filter: FILTER CALL CALLS.
 * FILTER is a file of struct sock_filter, or "-" for none; CALL a number. Prints nanoseconds per
 * call, as a decimal fraction. The call is made with argument 0 only.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double seconds(void)
{
	struct timespec now;

	/* The vDSO answers: no system call, so no filter need allow one. */
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	static struct sock_filter code[4096];
	static char text[64];
	struct sock_fprog program = { .filter = code };
	long calls, number, i;
	double start, took;
	int length;

	if (argc != 4)
		return 2;
	number = atol(argv[2]);
	calls = atol(argv[3]);
	if (strcmp(argv[1], "-") != 0) {
		FILE *file = fopen(argv[1], "rb");

		if (!file)
			return 3;
		program.len = fread(code, sizeof(code[0]), 4096, file);
		fclose(file);
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
		    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
			return 4;
	}
	for (i = 0; i < calls / 10; i++)
		syscall(number, 0);
	start = seconds();
	for (i = 0; i < calls; i++)
		syscall(number, 0);
	took = seconds() - start;
	length = snprintf(text, sizeof(text), "%.3f\n", took * 1e9 / calls);
	if (write(1, text, length) != length)
		return 5;
	syscall(SYS_exit_group, 0);
}
