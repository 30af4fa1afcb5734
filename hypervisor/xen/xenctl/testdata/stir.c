/*
 * stir does to a domain's frames what its kernel may do itself, by the same operations
 * of the hypervisor, and what its toolstack may:
 *
 *	stir DOMAIN take FRAME      XENMEM_decrease_reservation, as a balloon does
 *	stir DOMAIN give FRAME      XENMEM_populate_physmap, its other way
 *	stir DOMAIN put FRAME FROM  XENMEM_add_to_physmap: the memory at FROM, at FRAME
 *	stir DOMAIN allow PAGES     XEN_DOMCTL_max_mem
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenctrl.h>

int main(int argc, char **argv)
{
	xc_interface *xch = xc_interface_open(NULL, NULL, 0);
	uint32_t domain;
	xen_pfn_t frame;
	int rc = -1;

	if (!xch || argc < 4) {
		fprintf(stderr, "stir: no hypervisor, or no arguments\n");
		return 2;
	}
	domain = strtoul(argv[1], NULL, 0);
	frame = strtoull(argv[3], NULL, 0);
	if (!strcmp(argv[2], "take"))
		rc = xc_domain_decrease_reservation_exact(xch, domain, 1, 0, &frame);
	else if (!strcmp(argv[2], "give"))
		rc = xc_domain_populate_physmap_exact(xch, domain, 1, 0, 0, &frame);
	else if (!strcmp(argv[2], "put") && argc > 4)
		rc = xc_domain_add_to_physmap(xch, domain, XENMAPSPACE_gmfn, strtoull(argv[4], NULL, 0), frame);
	else if (!strcmp(argv[2], "allow"))
		rc = xc_domain_setmaxmem(xch, domain, (uint64_t)frame * 4);
	if (rc)
		perror("stir");
	xc_interface_close(xch);
	return rc != 0;
}
