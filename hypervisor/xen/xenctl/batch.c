//go:build xen

#include "batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>
#include <xencall.h>

#define US_PAGE 4096

struct us_batch {
	xencall_handle *call;
	uint32_t domid;
	size_t count; // of parameters

	// Memory that hypercalls can use.
	multicall_entry_t *calls;
	struct xen_domctl *tsc, *context, *one;
	xen_hvm_param_t *params;
	vcpu_guest_context_t *vcpu;
	uint8_t *buffer;
	size_t buffer_size;

	uint64_t *values; // of the parameters
};

static void *us_buffer(us_batch *b, size_t size)
{
	void *p = xencall_alloc_buffer_pages(b->call, (size + US_PAGE - 1) / US_PAGE);

	if (p)
		memset(p, 0, size);
	return p;
}

static void us_domctl(us_batch *b, struct xen_domctl *d, uint32_t cmd)
{
	memset(d, 0, sizeof(*d));
	d->cmd = cmd;
	d->interface_version = XEN_DOMCTL_INTERFACE_VERSION;
	d->domain = b->domid;
}

static int us_call(us_batch *b, struct xen_domctl *d)
{
	return xencall1(b->call, __HYPERVISOR_domctl, (uint64_t)(uintptr_t)d);
}

// Room for the domain's context as large as it is now, and some more.
static int us_room(us_batch *b)
{
	uint8_t *buffer;
	size_t size;

	us_domctl(b, b->one, XEN_DOMCTL_gethvmcontext);
	if (us_call(b, b->one) < 0)
		return -1;
	size = b->one->u.hvmcontext.size + US_PAGE;
	if (b->buffer && size <= b->buffer_size)
		return 0;
	buffer = us_buffer(b, size);
	if (!buffer)
		return -1;
	if (b->buffer)
		xencall_free_buffer_pages(b->call, b->buffer, (b->buffer_size + US_PAGE - 1) / US_PAGE);
	b->buffer = buffer;
	b->buffer_size = size;
	return 0;
}

us_batch *us_batch_new(xentoollog_logger *lg, uint32_t domid, const uint32_t *params, size_t count)
{
	us_batch *b = calloc(1, sizeof(*b));
	size_t i;
	int saved;

	if (!b)
		return NULL;
	b->domid = domid;
	b->count = count;
	b->values = calloc(count, sizeof(*b->values));
	if (!b->values)
		goto fail;
	b->call = xencall_open(lg, 0);
	if (!b->call)
		goto fail;
	if (!(b->calls = us_buffer(b, (count + 2) * sizeof(*b->calls))) || !(b->tsc = us_buffer(b, sizeof(*b->tsc))) ||
	    !(b->context = us_buffer(b, sizeof(*b->context))) || !(b->one = us_buffer(b, sizeof(*b->one))) ||
	    !(b->params = us_buffer(b, count * sizeof(*b->params))) || !(b->vcpu = us_buffer(b, sizeof(*b->vcpu))))
		goto fail;
	if (us_room(b))
		goto fail;
	for (i = 0; i < count; i++)
		b->params[i].index = params[i];
	return b;
fail:
	saved = errno;
	us_batch_free(b);
	errno = saved;
	return NULL;
}

static void us_unbuffer(us_batch *b, void *p, size_t size)
{
	if (p)
		xencall_free_buffer_pages(b->call, p, (size + US_PAGE - 1) / US_PAGE);
}

void us_batch_free(us_batch *b)
{
	us_unbuffer(b, b->calls, (b->count + 2) * sizeof(*b->calls));
	us_unbuffer(b, b->tsc, sizeof(*b->tsc));
	us_unbuffer(b, b->context, sizeof(*b->context));
	us_unbuffer(b, b->one, sizeof(*b->one));
	us_unbuffer(b, b->params, b->count * sizeof(*b->params));
	us_unbuffer(b, b->vcpu, sizeof(*b->vcpu));
	us_unbuffer(b, b->buffer, b->buffer_size);
	if (b->call)
		xencall_close(b->call);
	free(b->values);
	free(b);
}

static void us_entry(us_batch *b, size_t n, unsigned op, uint64_t first, uint64_t second)
{
	memset(&b->calls[n], 0, sizeof(b->calls[n]));
	b->calls[n].op = op;
	b->calls[n].args[0] = first;
	b->calls[n].args[1] = second;
}

// The multicall, whose entries are the parameters, the clock and the context. Returns
// the first that failed, -1 if the multicall itself did, count+2 if none did.
static int us_ask(us_batch *b)
{
	size_t i, all = b->count + 2;

	for (i = 0; i < b->count; i++) {
		b->params[i].domid = b->domid;
		b->params[i].value = 0;
		us_entry(b, i, __HYPERVISOR_hvm_op, HVMOP_get_param, (uint64_t)(uintptr_t)&b->params[i]);
	}
	us_domctl(b, b->tsc, XEN_DOMCTL_gettscinfo);
	us_entry(b, b->count, __HYPERVISOR_domctl, (uint64_t)(uintptr_t)b->tsc, 0);
	us_domctl(b, b->context, XEN_DOMCTL_gethvmcontext);
	b->context->u.hvmcontext.size = b->buffer_size;
	set_xen_guest_handle_raw(b->context->u.hvmcontext.buffer, b->buffer);
	us_entry(b, b->count + 1, __HYPERVISOR_domctl, (uint64_t)(uintptr_t)b->context, 0);
	if (xencall2(b->call, __HYPERVISOR_multicall, (uint64_t)(uintptr_t)b->calls, all) < 0)
		return -1;
	for (i = 0; i < all; i++)
		if ((int64_t)b->calls[i].result < 0) {
			errno = -(int64_t)b->calls[i].result;
			return i;
		}
	return all;
}

int us_batch_state(us_batch *b, us_state *out, const char **what)
{
	size_t i, all = b->count + 2;
	int failed = us_ask(b);

	if (failed == all - 1 && errno == ENOSPC) { // it has grown
		*what = "ask for the size of the HVM context";
		if (us_room(b))
			return -1;
		failed = us_ask(b);
	}
	if (failed != all) {
		*what = failed < 0 ? "ask for the state" : failed < b->count ? "ask for the HVM parameters" :
			failed == b->count ? "ask for the time stamp counter" : "save the HVM context";
		return -1;
	}
	for (i = 0; i < b->count; i++)
		b->values[i] = b->params[i].value;
	out->tsc_mode = b->tsc->u.tsc_info.tsc_mode;
	out->tsc_khz = b->tsc->u.tsc_info.gtsc_khz;
	out->tsc_incarnation = b->tsc->u.tsc_info.incarnation;
	out->tsc_nsec = b->tsc->u.tsc_info.elapsed_nsec;
	out->params = b->values;
	out->context = b->buffer;
	out->context_size = b->context->u.hvmcontext.size;
	return 0;
}

static int us_vcpu(us_batch *b, uint32_t cmd)
{
	us_domctl(b, b->one, cmd);
	b->one->u.vcpucontext.vcpu = 0; // the one that has suspended the domain
	set_xen_guest_handle_raw(b->one->u.vcpucontext.ctxt, b->vcpu);
	return us_call(b, b->one);
}

int us_batch_resume(us_batch *b, const char **what)
{
	*what = "read the processor's registers";
	if (us_vcpu(b, XEN_DOMCTL_getvcpucontext) < 0)
		return -1;
	b->vcpu->user_regs.rax = 1;
	*what = "set the processor's registers";
	if (us_vcpu(b, XEN_DOMCTL_setvcpucontext) < 0)
		return -1;
	*what = "resume";
	us_domctl(b, b->one, XEN_DOMCTL_resumedomain);
	return us_call(b, b->one) < 0 ? -1 : 0;
}
