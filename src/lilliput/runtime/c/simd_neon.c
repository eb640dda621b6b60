/* The kernels of NEON. */
#include "lil_isa.h"

#if LIL_ARM
const lil_kernel_table lil_kernels_neon = {0};
const lil_kernel_table lil_kernels_neondot = {0};
#endif
