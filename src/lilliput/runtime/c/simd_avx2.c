/* The kernels of AVX2. */
#include "lil_isa.h"

#if LIL_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#include "simd_lanes_avx2.h"
#include "simd_rows.h"
#include "simd_table_attention.h"
#include "simd_linear_avx2.h"

static void table_attention(const lil_call *call, const lil_part *part) {
    static const products lanes_products = {score_all, mix_queries};
    table_attention_with(call, part, &lanes_products);
}

const lil_kernel_table lil_kernels_avx2 = {
    [LIL_NORMALIZE] = normalize,
    [LIL_UNFOLD] = unfold,
    [LIL_QUANTIZE] = quantize,
    [LIL_LINEAR] = linear,
    [LIL_LINEAR_ADD] = linear_add,
    [LIL_LAYER_NORM] = layer_norm,
    [LIL_LINEAR_LEVELS] = linear_levels,
    [LIL_TABLE_ATTENTION] = table_attention,
    [LIL_PREPEND_TOKEN] = prepend_token,
    [LIL_ADD_POSITIONS] = add_positions,
    [LIL_MEAN_ROWS] = mean_rows,
    [LIL_EMBED_TOKENS] = embed_tokens,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
