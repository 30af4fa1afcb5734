// Stock Remus of one domain, timed: libxl_domain_remus_start, as xl remus calls it.
//
//	stock DOMID INTERVAL_MS
//
// The stream goes to descriptor 3. When its reader is gone, Remus ends with the domain
// suspended; it is resumed then. Standard output gets one line for each step, with
// CLOCK_MONOTONIC's nanoseconds:
//
//	request    libxl says that it asks the domain to suspend
//	suspended  libxl says that it has
//	resumed    the hypercall is made that lets the domain run
//
// The steps are what libxl says to its logger, and a function before libxencall's by which
// all hypercalls go: nothing of it is traced or patched. When the last hypercall has
// returned would say nothing: the domain may have had the processor meanwhile.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <libxl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xen/xen.h>
#include <xen/domctl.h>
#include <xencall.h>

struct step {
	const char *what;
	long long at;
};

static struct step steps[1 << 16];
static size_t taken;

static void note(const char *what)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	if (taken < sizeof(steps) / sizeof(*steps))
		steps[taken++] = (struct step){what, t.tv_sec * 1000000000LL + t.tv_nsec};
}

int xencall1(xencall_handle *call, unsigned int op, uint64_t argument)
{
	static int (*next)(xencall_handle *, unsigned int, uint64_t);

	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "xencall1");
	if (op == __HYPERVISOR_domctl && ((xen_domctl_t *)(uintptr_t)argument)->cmd == XEN_DOMCTL_resumedomain)
		note("resumed");
	return next(call, op, argument);
}

// libxl's own format is a row of %s: its arguments are looked at as they are.
static void message(xentoollog_logger *l, xentoollog_level level, int errnoval, const char *context,
                    const char *format, va_list al)
{
	va_list words;
	const char *f;

	if (level >= XTL_ERROR) {
		vfprintf(stderr, format, al);
		fputc('\n', stderr);
		return;
	}
	if (level != XTL_DEBUG)
		return;
	va_copy(words, al);
	for (f = format; f[0] == '%' && f[1] == 's'; f += 2) {
		const char *word = va_arg(words, const char *);

		if (!strncmp(word, "issuing ", 8))
			note("request");
		else if (!strcmp(word, "guest has suspended"))
			note("suspended");
	}
	va_end(words);
}

static void progress(xentoollog_logger *l, const char *context, const char *doing, int percent,
                     unsigned long done, unsigned long total)
{
}

static void destroy(xentoollog_logger *l)
{
}

int main(int argc, char **argv)
{
	xentoollog_logger logger = {.vmessage = message, .progress = progress, .destroy = destroy};
	libxl_domain_remus_info info;
	libxl_ctx *ctx;
	uint32_t domid;
	size_t i;
	int rc;

	if (argc != 3) {
		fprintf(stderr, "stock DOMID INTERVAL_MS\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	domid = strtoul(argv[1], NULL, 10);
	rc = libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, &logger);
	if (rc) {
		fprintf(stderr, "stock: open libxenlight: %d\n", rc);
		return 1;
	}
	libxl_domain_remus_info_init(&info);
	info.interval = atoi(argv[2]);
	libxl_defbool_set(&info.allow_unsafe, true);
	libxl_defbool_set(&info.blackhole, false);
	libxl_defbool_set(&info.compression, false);
	libxl_defbool_set(&info.netbuf, false);
	libxl_defbool_set(&info.diskbuf, false);
	libxl_defbool_set(&info.colo, false);
	libxl_defbool_set(&info.userspace_colo_proxy, false);
	rc = libxl_domain_remus_start(ctx, &info, domid, 3, -1, NULL);
	fprintf(stderr, "stock: Remus has ended: %d\n", rc);
	rc = libxl_domain_resume(ctx, domid, 1, NULL);
	if (rc)
		fprintf(stderr, "stock: resume domain %u: %d\n", domid, rc);
	for (i = 0; i < taken; i++)
		printf("%s %lld\n", steps[i].what, steps[i].at);
	libxl_domain_remus_info_dispose(&info);
	libxl_ctx_free(ctx);
	return rc != 0;
}
