/* The kernels of AVX2. */
#include "lil_isa.h"

#if LIL_X86
const lil_kernel_table lil_kernels_avx2 = {0};
#endif
