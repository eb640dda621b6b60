/* The kernels of NEON, which is a part of aarch64. */
#include "lil_isa.h"

#if LIL_ARM
#define NEON_DOT 0
#include "simd_lanes_neon.h"
#include "simd_table_attention.h"
#include "simd_product_neon.h"
#include "simd_rows.h"

static void table_attention(const lil_call *call, const lil_part *part) {
    static const products lanes_products = {score_all, mix_queries};
    table_attention_with(call, part, &lanes_products);
}

const lil_kernel_table lil_kernels_neon = {
    [LIL_NORMALIZE] = normalize,
    [LIL_UNFOLD] = unfold,
    [LIL_QUANTIZE] = quantize,
    [LIL_LINEAR] = linear_activated,
    [LIL_LINEAR_ADD] = linear_add,
    [LIL_LAYER_NORM] = layer_norm,
    [LIL_LINEAR_LEVELS] = linear_levels,
    [LIL_TABLE_ATTENTION] = table_attention,
    [LIL_PREPEND_TOKEN] = prepend_token,
    [LIL_ADD_POSITIONS] = add_positions,
    [LIL_MEAN_ROWS] = mean_rows,
    [LIL_EMBED_TOKENS] = embed_tokens,
};
#endif
