//go:build xen

// When a domain was resumed last: a function before libxencall's, as in ../stock.
#ifndef US_RESUMED_H
#define US_RESUMED_H

// CLOCK_MONOTONIC, in ns, when the hypercall was made that lets a domain run; 0: none was.
long long us_resumed(void);

// CLOCK_MONOTONIC, in ns.
long long us_now(void);

#endif
