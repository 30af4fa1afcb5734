//go:build xen

#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct us_logger {
	xentoollog_logger vtable; // first: the library has a pointer to it
	pthread_mutex_t mutex;
	size_t used;
	char text[4096];
};

static void us_vmessage(xentoollog_logger *base, xentoollog_level level, int errnoval,
                        const char *context, const char *format, va_list al)
{
	us_logger *l = (us_logger *)base;
	char line[512];
	int saved = errno, n;

	if (level < XTL_WARN)
		return;
	n = vsnprintf(line, sizeof(line) - 1, format, al);
	if (n < 0)
		n = 0;
	if ((size_t)n > sizeof(line) - 2)
		n = sizeof(line) - 2;
	if (errnoval >= 0 && (size_t)n < sizeof(line) - 2) {
		int m = snprintf(line + n, sizeof(line) - 1 - n, " (%s)", strerror(errnoval));
		if (m > 0)
			n = (size_t)(n + m) > sizeof(line) - 2 ? (int)sizeof(line) - 2 : n + m;
	}
	line[n++] = '\n';
	pthread_mutex_lock(&l->mutex);
	if (l->used + n > sizeof(l->text) - 1) {
		// The newest half is what tells.
		size_t half = l->used / 2;
		memmove(l->text, l->text + half, l->used - half);
		l->used -= half;
	}
	if (l->used + n <= sizeof(l->text) - 1) {
		memcpy(l->text + l->used, line, n);
		l->used += n;
	}
	pthread_mutex_unlock(&l->mutex);
	errno = saved; // the caller has yet to look at it
}

static void us_destroy(xentoollog_logger *base)
{
	us_logger *l = (us_logger *)base;

	pthread_mutex_destroy(&l->mutex);
	free(l);
}

us_logger *us_logger_new(void)
{
	us_logger *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->vtable.vmessage = us_vmessage;
	l->vtable.destroy = us_destroy;
	pthread_mutex_init(&l->mutex, NULL);
	return l;
}

void us_logger_free(us_logger *l)
{
	xtl_logger_destroy(&l->vtable);
}

xentoollog_logger *us_logger_base(us_logger *l)
{
	return &l->vtable;
}

char *us_logger_take(us_logger *l)
{
	char *text;

	pthread_mutex_lock(&l->mutex);
	text = malloc(l->used + 1);
	if (text) {
		memcpy(text, l->text, l->used);
		text[l->used] = 0;
	}
	l->used = 0;
	pthread_mutex_unlock(&l->mutex);
	return text;
}
