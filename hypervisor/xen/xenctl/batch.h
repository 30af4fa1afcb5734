//go:build xen

// The hypercalls of a pause, with memory of their own: libxencall.
#ifndef US_BATCH_H
#define US_BATCH_H

#include <stddef.h>
#include <stdint.h>
#include <xentoollog.h>

typedef struct us_batch us_batch;

typedef struct {
	uint32_t tsc_mode, tsc_khz, tsc_incarnation;
	uint64_t tsc_nsec;
	const uint64_t *params;  // as many as were asked for, in their order
	const uint8_t *context;  // HVM context, in the batch's memory
	uint32_t context_size;
} us_state;

// The calls of one domain, which ask for the HVM parameters of the indices given.
// NULL with errno.
us_batch *us_batch_new(xentoollog_logger *lg, uint32_t domid, const uint32_t *params, size_t count);
void us_batch_free(us_batch *b);

// What of a domain that stands still is not memory: gettscinfo, HVMOP_get_param,
// gethvmcontext, in one multicall. -1 with errno; *what says which call has failed.
int us_batch_state(us_batch *b, us_state *out, const char **what);

// A domain that has suspended goes on: its hypercall returns 1 (getvcpucontext,
// setvcpucontext), and it runs (resumedomain). It has drivers for Xen. -1 with errno;
// *what says which call has failed.
int us_batch_resume(us_batch *b, const char **what);

#endif
