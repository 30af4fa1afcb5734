//go:build xen

#include "toolstack.h"

#include <libxl_event.h>
#include <libxl_utils.h>
#include <stdlib.h>

static const libxl_childproc_hooks us_hooks = {
	.chldowner = libxl_sigchld_owner_mainloop,
};

int us_toolstack_new(libxl_ctx **ctx, xentoollog_logger *lg)
{
	int rc = libxl_ctx_alloc(ctx, LIBXL_VERSION, 0, lg);

	if (!rc)
		libxl_childproc_setmode(*ctx, &us_hooks, NULL);
	return rc;
}

int us_config(libxl_ctx *ctx, uint32_t domid, char **json)
{
	libxl_domain_config config;
	int rc;

	*json = NULL;
	libxl_domain_config_init(&config);
	rc = libxl_retrieve_domain_configuration(ctx, domid, &config, NULL);
	if (!rc) {
		*json = libxl_domain_config_to_json(ctx, &config);
		if (!*json)
			rc = ERROR_NOMEM;
	}
	libxl_domain_config_dispose(&config);
	return rc;
}

int us_create(libxl_ctx *ctx, const char *json, uint32_t *domid)
{
	libxl_domain_config config;
	int rc;

	*domid = INVALID_DOMID;
	libxl_domain_config_init(&config);
	rc = libxl_domain_config_from_json(ctx, &config, json);
	if (!rc)
		rc = libxl_domain_create_new(ctx, &config, domid, NULL, NULL);
	libxl_domain_config_dispose(&config);
	if (*domid == INVALID_DOMID)
		*domid = 0;
	return rc;
}

int us_restore(libxl_ctx *ctx, const char *json, int fd, uint32_t *domid)
{
	libxl_domain_restore_params params;
	libxl_domain_config config;
	int rc;

	*domid = INVALID_DOMID;
	libxl_domain_config_init(&config);
	libxl_domain_restore_params_init(&params);
	params.checkpointed_stream = LIBXL_CHECKPOINTED_STREAM_NONE;
	params.stream_version = 2;
	rc = libxl_domain_config_from_json(ctx, &config, json);
	if (!rc)
		rc = libxl_domain_create_restore(ctx, &config, domid, fd, -1, &params, NULL, NULL);
	libxl_domain_restore_params_dispose(&params);
	libxl_domain_config_dispose(&config);
	if (*domid == INVALID_DOMID)
		*domid = 0;
	return rc;
}

int us_save(libxl_ctx *ctx, uint32_t domid, int fd)
{
	return libxl_domain_suspend(ctx, domid, fd, 0, NULL);
}

const char *us_error_name(int rc)
{
	return libxl_error_to_string((libxl_error)rc);
}
