//go:build xen

#define _GNU_SOURCE
#include "resumed.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <xen/xen.h>
#include <xen/domctl.h>
#include <xencall.h>

static _Atomic long long us_at;

// The function of libxencall's by which every hypercall with one argument goes.
int xencall1(xencall_handle *call, unsigned int op, uint64_t argument)
{
	static int (*next)(xencall_handle *, unsigned int, uint64_t);

	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "xencall1");
	if (op == __HYPERVISOR_domctl && ((xen_domctl_t *)(uintptr_t)argument)->cmd == XEN_DOMCTL_resumedomain) {
		struct timespec t;

		clock_gettime(CLOCK_MONOTONIC, &t);
		atomic_store(&us_at, t.tv_sec * 1000000000LL + t.tv_nsec);
	}
	return next(call, op, argument);
}

long long us_resumed(void)
{
	return atomic_load(&us_at);
}

long long us_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}
