/* See peak.c. */
#ifndef LIL_PEAK_H
#define LIL_PEAK_H

#include "lil.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For an instruction set that lil_isa_available says is there. */
double lil_peak_macs_per_second(lil_isa isa);

#ifdef __cplusplus
}
#endif
#endif
