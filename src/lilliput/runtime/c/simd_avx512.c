/* The kernels of AVX-512. */
#include "lil_isa.h"

#if LIL_X86
const lil_kernel_table lil_kernels_avx512 = {0};
#endif
