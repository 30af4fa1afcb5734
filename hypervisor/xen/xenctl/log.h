//go:build xen

// A logger of libxentoollog that keeps the last lines of level warning and
// above. It may be told of from several threads.
#ifndef US_LOG_H
#define US_LOG_H

#include <xentoollog.h>

typedef struct us_logger us_logger;

us_logger *us_logger_new(void);
void us_logger_free(us_logger *l);
xentoollog_logger *us_logger_base(us_logger *l);

// Returns what was said since the last call, each line ended by \n, in memory
// that the caller frees; NULL if there is no memory.
char *us_logger_take(us_logger *l);

#endif
