/* The matrix product of NEON. Internal; included by simd_neon.c and by simd_neondot.c, where NEON_DOT is 1.
 *
 * A tile of the file is 16 outputs x 4 inputs: four registers, each of four outputs with four inputs next to each
 * other. The dot product instruction multiplies such a register by four inputs of one row and adds them up into four
 * int32. Without it, two tiles' products are added in 16 bits, which hold them: 2 * 127 * 127 < 2^15. */
#ifndef LIL_SIMD_PRODUCT_NEON_H
#define LIL_SIMD_PRODUCT_NEON_H

#include "simd_finish.h"

enum {
    TILE_N = 16,
    STEP = 8,                     /* inputs: two tiles */
    CHUNK = 1024,                 /* inputs that are decoded at a time */
    GROUP = 80,                   /* rows that share what is decoded, at most */
    BLOCK = NEON_DOT ? 5 : 2,     /* rows whose sums stay in registers */
};

/* Levels of n codes of 8 inputs x 16 outputs: from 64 bytes, even tile low, to two tiles of 64. */
static void decode_tiles(const uint8_t *codes, uint16_t format, size_t depth, int8_t *levels) {
    const int8x16_t table = vld1q_s8(lil_levels_4bit[format - LIL_INT4]);
    const uint8x16_t low = vdupq_n_u8(15);
    for (size_t k = 0; k < depth; k += STEP, levels += 128) {
        for (size_t i = 0; i < 64; i += 16, codes += 16) {
            const uint8x16_t pairs = vld1q_u8(codes);
            vst1q_s8(levels + i, vqtbl1q_s8(table, vandq_u8(pairs, low)));
            vst1q_s8(levels + 64 + i, vqtbl1q_s8(table, vshrq_n_u8(pairs, 4)));
        }
    }
}

#if NEON_DOT
/* sums[r][n] = (first ? 0 : sums[r][n]) + sum over `depth` inputs of x[r][k] * w[k][n]; `rows` is a literal. */
LIL_INLINE void multiply_block(const int8_t *x, size_t stride, const int8_t *w, size_t depth, int32_t *sums, bool first,
                               size_t rows) {
    int32x4_t sum[BLOCK][4];
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        LIL_UNROLL
        for (size_t j = 0; j < 4; j++) {
            sum[r][j] = first ? vdupq_n_s32(0) : vld1q_s32(sums + TILE_N * r + 4 * j);
        }
    }
    for (size_t k = 0; k < depth; k += STEP, w += 128) {
        const int8x16_t a0 = vld1q_s8(w), a1 = vld1q_s8(w + 16), a2 = vld1q_s8(w + 32), a3 = vld1q_s8(w + 48);
        const int8x16_t b0 = vld1q_s8(w + 64), b1 = vld1q_s8(w + 80), b2 = vld1q_s8(w + 96), b3 = vld1q_s8(w + 112);
        LIL_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const int8x8_t levels = vld1_s8(x + r * stride + k);
            sum[r][0] = vdotq_lane_s32(vdotq_lane_s32(sum[r][0], a0, levels, 0), b0, levels, 1);
            sum[r][1] = vdotq_lane_s32(vdotq_lane_s32(sum[r][1], a1, levels, 0), b1, levels, 1);
            sum[r][2] = vdotq_lane_s32(vdotq_lane_s32(sum[r][2], a2, levels, 0), b2, levels, 1);
            sum[r][3] = vdotq_lane_s32(vdotq_lane_s32(sum[r][3], a3, levels, 0), b3, levels, 1);
        }
    }
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        LIL_UNROLL
        for (size_t j = 0; j < 4; j++) {
            vst1q_s32(sums + TILE_N * r + 4 * j, sum[r][j]);
        }
    }
}
#else
/* As above. A lane of the sums here is half of an output's: they are added to pairs at the end. */
LIL_INLINE void multiply_block(const int8_t *x, size_t stride, const int8_t *w, size_t depth, int32_t *sums, bool first,
                               size_t rows) {
    int32x4_t half[BLOCK][8];
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        LIL_UNROLL
        for (size_t j = 0; j < 8; j++) {
            half[r][j] = vdupq_n_s32(0);
        }
    }
    for (size_t k = 0; k < depth; k += STEP, w += 128) {
        int8x16_t x0[BLOCK], x1[BLOCK];
        LIL_UNROLL
        for (size_t r = 0; r < rows; r++) {
            x0[r] = lanes_repeat_four(x + r * stride + k);
            x1[r] = lanes_repeat_four(x + r * stride + k + 4);
        }
        LIL_UNROLL
        for (size_t j = 0; j < 4; j++) {
            const int8x16_t a = vld1q_s8(w + 16 * j), b = vld1q_s8(w + 64 + 16 * j);
            LIL_UNROLL
            for (size_t r = 0; r < rows; r++) {
                int16x8_t pair = vmull_s8(vget_low_s8(a), vget_low_s8(x0[r]));
                pair = vmlal_s8(pair, vget_low_s8(b), vget_low_s8(x1[r]));
                half[r][2 * j] = vpadalq_s16(half[r][2 * j], pair);
                pair = vmull_high_s8(a, x0[r]);
                pair = vmlal_high_s8(pair, b, x1[r]);
                half[r][2 * j + 1] = vpadalq_s16(half[r][2 * j + 1], pair);
            }
        }
    }
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        LIL_UNROLL
        for (size_t j = 0; j < 4; j++) {
            int32_t *sum = sums + TILE_N * r + 4 * j;
            const int32x4_t added = vpaddq_s32(half[r][2 * j], half[r][2 * j + 1]);
            vst1q_s32(sum, first ? added : vaddq_s32(vld1q_s32(sum), added));
        }
    }
}
#endif

/* The same for any number of rows. */
static void multiply_rows(const int8_t *x, size_t stride, const int8_t *w, size_t depth, int32_t *sums, bool first,
                          size_t rows) {
    for (; rows >= BLOCK; rows -= BLOCK, x += BLOCK * stride, sums += BLOCK * TILE_N) {
        multiply_block(x, stride, w, depth, sums, first, BLOCK);
    }
    switch (rows) {
    case 1: multiply_block(x, stride, w, depth, sums, first, 1); break;
#if NEON_DOT
    case 2: multiply_block(x, stride, w, depth, sums, first, 2); break;
    case 3: multiply_block(x, stride, w, depth, sums, first, 3); break;
    case 4: multiply_block(x, stride, w, depth, sums, first, 4); break;
#endif
    default: break;
    }
}

/* Rows [r0, r0 + rows), at most GROUP, of the product. */
static void multiply_group(const lil_call *call, finish how, size_t r0, size_t rows) {
    const finish_target target = finish_target_of(call);
    const size_t outputs = call->tensor[0].rows, padded_k = call->in[0].cols;
    const uint16_t format = call->tensor[0].format;
    const size_t code_bits = format == LIL_INT8 ? 8 : 4;
    const int8_t *x = (const int8_t *)call->in[0].data + r0 * padded_k;
    const uint8_t *codes = call->tensor[0].data;
    int8_t decoded[TILE_N * CHUNK];
    int32_t sums[GROUP * TILE_N];
    for (size_t n0 = 0; n0 < outputs; n0 += TILE_N) {
        for (size_t k0 = 0; k0 < padded_k; k0 += CHUNK) {
            const size_t depth = padded_k - k0 < CHUNK ? padded_k - k0 : CHUNK;
            const int8_t *levels = (const int8_t *)codes; /* a code of 8 bits is its level */
            if (code_bits < 8) {
                decode_tiles(codes, format, depth, decoded);
                levels = decoded;
            }
            multiply_rows(x + k0, padded_k, levels, depth, sums, k0 == 0, rows);
            codes += TILE_N * depth * code_bits / 8;
        }
        finish_tile(&target, how, sums, r0, rows, n0, outputs - n0 < TILE_N ? outputs - n0 : TILE_N);
    }
}

static void linear(const lil_call *call, const lil_part *part, finish how) {
    const size_t rows = part->end - part->begin, groups = (rows + GROUP - 1) / GROUP;
    const size_t each = ((rows + groups - 1) / groups + BLOCK - 1) / BLOCK * BLOCK; /* GROUP is a multiple too */
    for (size_t r0 = part->begin; r0 < part->end; r0 += each) {
        multiply_group(call, how, r0, part->end - r0 < each ? part->end - r0 : each);
    }
}

static void linear_activated(const lil_call *call, const lil_part *part) {
    static const finish activations[] = {FINISH_NONE, FINISH_RELU, FINISH_GELU};
    if (call->tensor[0].format > LIL_POT4) {
        lil_op_linear(call, part);
        return;
    }
    linear(call, part, activations[call->a[0]]);
}

static void linear_add(const lil_call *call, const lil_part *part) {
    if (call->tensor[0].format > LIL_POT4) {
        lil_op_linear_add(call, part);
        return;
    }
    linear(call, part, FINISH_ADD);
}

#endif
