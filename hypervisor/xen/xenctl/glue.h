//go:build xen

// What cgo cannot say: bit fields, macros with statements, and callbacks.
#ifndef US_GLUE_H
#define US_GLUE_H

#include <xenctrl.h>
#include <xenguest.h>

typedef struct {
	int hvm, hap, dying, crashed, shutdown, paused;
} us_flags;

// The bit fields of what xc_domain_getinfo tells.
void us_dominfo_flags(const xc_dominfo_t *d, us_flags *f);

// A log-dirty bitmap of a domain's frames, in memory that hypercalls can write.
typedef struct us_bitmap us_bitmap;

us_bitmap *us_bitmap_new(xc_interface *xch, unsigned long frames);
void us_bitmap_free(xc_interface *xch, us_bitmap *b);
const uint64_t *us_bitmap_words(us_bitmap *b);

// Fetches the frames written since the last call, and those mapped for writing by
// the hypervisor: XEN_DOMCTL_SHADOW_OP_CLEAN with LOGDIRTY_FINAL. Returns the
// number of frames told of, or -1 with errno.
long long us_bitmap_clean(xc_interface *xch, uint32_t domid, us_bitmap *b);

// Exported by libxenctrl, for libxenguest, and in no public header: the types of
// up to 1024 frames, whose numbers are in arr before.
int xc_get_pfn_type_batch(xc_interface *xch, uint32_t dom, unsigned int num, xen_pfn_t *arr);

// xc_domain_save of a domain that has suspended, with no other callback than the
// ones which say so.
int us_save_suspended(xc_interface *xch, int fd, uint32_t domid);

#endif
