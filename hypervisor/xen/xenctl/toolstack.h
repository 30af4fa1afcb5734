//go:build xen

// Sequences of libxl's calls whose structures live only between them.
#ifndef US_TOOLSTACK_H
#define US_TOOLSTACK_H

#include <libxl.h>

// A context whose children we tell it of.
int us_toolstack_new(libxl_ctx **ctx, xentoollog_logger *lg);

// A domain's configuration as JSON, in memory that the caller frees.
int us_config(libxl_ctx *ctx, uint32_t domid, char **json);

// A domain of a configuration as JSON, paused; 0 in *domid: none was made.
int us_create(libxl_ctx *ctx, const char *json, uint32_t *domid);
int us_restore(libxl_ctx *ctx, const char *json, int fd, uint32_t *domid);

// A domain suspends, and its stream is written.
int us_save(libxl_ctx *ctx, uint32_t domid, int fd);

// The name of one of libxl's errors.
const char *us_error_name(int rc);

#endif
