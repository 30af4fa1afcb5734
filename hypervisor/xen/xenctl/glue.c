//go:build xen

#include "glue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void us_dominfo_flags(const xc_dominfo_t *d, us_flags *f)
{
	f->hvm = d->hvm;
	f->hap = d->hap;
	f->dying = d->dying;
	f->crashed = d->crashed;
	f->shutdown = d->shutdown;
	f->paused = d->paused;
}

struct us_bitmap {
	unsigned long frames;
	int pages;
	xc_hypercall_buffer_t hbuf;
	uint64_t *words;
};

us_bitmap *us_bitmap_new(xc_interface *xch, unsigned long frames)
{
	DECLARE_HYPERCALL_BUFFER(uint64_t, words);
	us_bitmap *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->frames = frames;
	b->pages = (frames + 8 * XC_PAGE_SIZE - 1) / (8 * XC_PAGE_SIZE);
	words = xc_hypercall_buffer_alloc_pages(xch, words, b->pages);
	if (!words) {
		free(b);
		return NULL;
	}
	memset(words, 0, (size_t)b->pages * XC_PAGE_SIZE);
	b->words = words;
	b->hbuf = *HYPERCALL_BUFFER(words);
	return b;
}

void us_bitmap_free(xc_interface *xch, us_bitmap *b)
{
	DECLARE_HYPERCALL_BUFFER_SHADOW(uint64_t, words, &b->hbuf);

	(void)words;
	xc_hypercall_buffer_free_pages(xch, words, b->pages);
	free(b);
}

const uint64_t *us_bitmap_words(us_bitmap *b)
{
	return b->words;
}

long long us_bitmap_clean(xc_interface *xch, uint32_t domid, us_bitmap *b)
{
	DECLARE_HYPERCALL_BUFFER_SHADOW(uint64_t, words, &b->hbuf);

	(void)words;
	return xc_logdirty_control(xch, domid, XEN_DOMCTL_SHADOW_OP_CLEAN, HYPERCALL_BUFFER(words),
	                           b->frames, XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL, NULL);
}

static int us_suspended(void *data)
{
	return 1; // it has, before
}

static int us_no_logdirty(uint32_t domid, unsigned enable, void *data)
{
	return 0; // a PV domain has no device model
}

int us_save_suspended(xc_interface *xch, int fd, uint32_t domid)
{
	struct save_callbacks callbacks = {
		.suspend = us_suspended,
		.switch_qemu_logdirty = us_no_logdirty,
	};

	return xc_domain_save(xch, fd, domid, 0, &callbacks, XC_STREAM_PLAIN, -1);
}
