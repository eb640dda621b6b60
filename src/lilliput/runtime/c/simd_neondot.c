/* The integer products of NEON with the dot product instructions. Everything else is NEON's. */
#include "lil_isa.h"

#if LIL_ARM
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define NEON_DOT 1
#include "simd_lanes_neon.h"
#include "simd_table_attention.h"
#include "simd_product_neon.h"

static void table_attention(const lil_call *call, const lil_part *part) {
    static const products lanes_products = {score_all, mix_queries};
    table_attention_with(call, part, &lanes_products);
}

const lil_kernel_table lil_kernels_neondot = {
    [LIL_LINEAR] = linear_activated,
    [LIL_LINEAR_ADD] = linear_add,
    [LIL_LINEAR_LEVELS] = linear_levels,
    [LIL_TABLE_ATTENTION] = table_attention,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
