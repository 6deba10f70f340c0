// SPDX-License-Identifier: GPL-2.0-only
// The decision from error code to way, as a C programmer would write it: the yardstick for the compiled path.
#include <stdint.h>

enum { RETRY, MMIO, FAULT };

#define BIT(n) (UINT64_C(1) << (n))

void route(long n, const uint64_t *restrict code, const uint8_t *restrict root_valid,
	   const uint8_t *restrict vm_type, const uint64_t *restrict attrs,
	   uint8_t *restrict way, uint64_t *restrict out, uint8_t *restrict warned)
{
	const uint64_t ours = BIT(48) | BIT(49);

	for (long i = 0; i < n; i++) {
		uint64_t c = code[i] & ~ours;
		uint8_t w = (code[i] & ours) ? 2 : 0;

		if (!root_valid[i]) {
			way[i] = RETRY;
			w |= 4;
		} else if (c & BIT(3)) {
			way[i] = MMIO;
		} else {
			way[i] = FAULT;
			if (vm_type[i] == 1 && (attrs[i] & BIT(3)))
				c |= BIT(49);
		}
		out[i] = c;
		warned[i] = w;
	}
}
