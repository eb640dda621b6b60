/* The kernels of NEON. */
#include "lil_isa.h"

#if LIL_ARM
#include "simd_lanes_neon.h"
#include "simd_rows.h"

const lil_kernel_table lil_kernels_neon = {
    [LIL_NORMALIZE] = normalize,
    [LIL_UNFOLD] = unfold,
    [LIL_QUANTIZE] = quantize,
    [LIL_LAYER_NORM] = layer_norm,
    [LIL_PREPEND_TOKEN] = prepend_token,
    [LIL_ADD_POSITIONS] = add_positions,
    [LIL_MEAN_ROWS] = mean_rows,
};
const lil_kernel_table lil_kernels_neondot = {0};
#endif
