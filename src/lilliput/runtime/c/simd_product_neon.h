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
    STEP_BYTES = STEP * TILE_N,   /* of levels */
    CHUNK = 128,                  /* steps that are decoded at a time */
    GROUP = 80,                   /* rows that share what is decoded, at most */
    BLOCK = NEON_DOT ? 5 : 2,     /* rows whose sums stay in registers */
};

/* The weights of 16 outputs: some steps' levels, and where each step's inputs begin. */
typedef struct chunk {
    const int8_t *levels; /* tiles of the steps, one after another */
    size_t steps;
    uint32_t at[CHUNK];
    int8_t decoded[CHUNK * STEP_BYTES];
} chunk;

/* `count` blocks of 4-bit codes: of each byte, the lower ones are the first tile's. */
static void decode_4bit(const uint8_t *codes, size_t count, const int8_t table[16], int8_t *levels) {
    const int8x16_t values = vld1q_s8(table);
    for (size_t block = 0; block < count; block++, levels += 64) {
        for (size_t i = 0; i < 64; i += 16, codes += 16, levels += 16) {
            const uint8x16_t both = vld1q_u8(codes);
            vst1q_s8(levels, vqtbl1q_s8(values, vandq_u8(both, vdupq_n_u8(15))));
            vst1q_s8(levels + 64, vqtbl1q_s8(values, vshrq_n_u8(both, 4)));
        }
    }
}

/* The same of 6-bit codes: four tiles' lower bits in two times 64 bytes, then the upper bits of all. */
static void decode_6bit(const uint8_t *codes, size_t count, const int8_t table[64], int8_t *levels) {
    const int8x16x4_t values = {{vld1q_s8(table), vld1q_s8(table + 16), vld1q_s8(table + 32), vld1q_s8(table + 48)}};
    const uint8x16_t low = vdupq_n_u8(15), high = vdupq_n_u8(0x30);
    for (size_t block = 0; block < count; block++, codes += 192 - 64, levels += 256 - 64) {
        for (size_t i = 0; i < 64; i += 16, codes += 16, levels += 16) {
            const uint8x16_t first = vld1q_u8(codes), second = vld1q_u8(codes + 64), upper = vld1q_u8(codes + 128);
            const uint8x16_t t0 = vorrq_u8(vandq_u8(first, low), vandq_u8(vshlq_n_u8(upper, 4), high));
            const uint8x16_t t1 = vorrq_u8(vshrq_n_u8(first, 4), vandq_u8(vshlq_n_u8(upper, 2), high));
            const uint8x16_t t2 = vorrq_u8(vandq_u8(second, low), vandq_u8(upper, high));
            const uint8x16_t t3 = vorrq_u8(vshrq_n_u8(second, 4), vandq_u8(vshrq_n_u8(upper, 2), high));
            vst1q_s8(levels, vqtbl4q_s8(values, t0));
            vst1q_s8(levels + 64, vqtbl4q_s8(values, t1));
            vst1q_s8(levels + 128, vqtbl4q_s8(values, t2));
            vst1q_s8(levels + 192, vqtbl4q_s8(values, t3));
        }
    }
}

/* Make ready `count` blocks that lie at `codes`: those of `columns`, or from column `first` on where that is NULL. What
 * a block has beyond the activations is padding. */
static void prepare_chunk(chunk *c, uint16_t format, const uint8_t *codes, const uint8_t *columns, size_t first,
                          size_t count, size_t padded_k) {
    const uint32_t width = lil_block_cols(format), bits = lil_code_bits(format);
    c->levels = bits == 8 ? (const int8_t *)codes : c->decoded; /* a code of 8 bits is its level */
    if (bits == 4) {
        decode_4bit(codes, count, lil_levels_of(format), c->decoded);
    } else if (bits == 6) {
        decode_6bit(codes, count, lil_levels_of(format), c->decoded);
    }
    c->steps = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t begin = width * (columns != NULL ? lil_u16_at(columns, i) : (uint32_t)(first + i));
        for (uint32_t k = begin; k < begin + width && k < padded_k; k += STEP) {
            c->at[c->steps++] = k;
        }
    }
}

#if NEON_DOT
/* sums[r][n] = (first ? 0 : sums[r][n]) + sum over the chunk's inputs of x[r][k] * w[k][n]; `rows` is a literal. */
LIL_INLINE void multiply_block(const int8_t *x, size_t stride, const chunk *c, int32_t *sums, bool first, size_t rows) {
    const int8_t *w = c->levels;
    int32x4_t sum[BLOCK][4];
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        LIL_UNROLL
        for (size_t j = 0; j < 4; j++) {
            sum[r][j] = first ? vdupq_n_s32(0) : vld1q_s32(sums + TILE_N * r + 4 * j);
        }
    }
    for (size_t i = 0; i < c->steps; i++, w += STEP_BYTES) {
        const size_t k = c->at[i];
        const int8x16_t a0 = vld1q_s8(w), a1 = vld1q_s8(w + 16), a2 = vld1q_s8(w + 32), a3 = vld1q_s8(w + 48);
        const int8x16_t b0 = vld1q_s8(w + 64), b1 = vld1q_s8(w + 80), b2 = vld1q_s8(w + 96), b3 = vld1q_s8(w + 112);
        LIL_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const int8x8_t levels = vld1_s8(x + r * stride + k);
            sum[r][0] = LANES_SDOT_LANE(LANES_SDOT_LANE(sum[r][0], a0, levels, 0), b0, levels, 1);
            sum[r][1] = LANES_SDOT_LANE(LANES_SDOT_LANE(sum[r][1], a1, levels, 0), b1, levels, 1);
            sum[r][2] = LANES_SDOT_LANE(LANES_SDOT_LANE(sum[r][2], a2, levels, 0), b2, levels, 1);
            sum[r][3] = LANES_SDOT_LANE(LANES_SDOT_LANE(sum[r][3], a3, levels, 0), b3, levels, 1);
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
LIL_INLINE void multiply_block(const int8_t *x, size_t stride, const chunk *c, int32_t *sums, bool first, size_t rows) {
    const int8_t *w = c->levels;
    int32x4_t half[BLOCK][8];
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        LIL_UNROLL
        for (size_t j = 0; j < 8; j++) {
            half[r][j] = vdupq_n_s32(0);
        }
    }
    for (size_t i = 0; i < c->steps; i++, w += STEP_BYTES) {
        const size_t k = c->at[i];
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
static void multiply_rows(const int8_t *x, size_t stride, const chunk *c, int32_t *sums, bool first, size_t rows) {
    for (; rows >= BLOCK; rows -= BLOCK, x += BLOCK * stride, sums += BLOCK * TILE_N) {
        multiply_block(x, stride, c, sums, first, BLOCK);
    }
    switch (rows) {
    case 1: multiply_block(x, stride, c, sums, first, 1); break;
#if NEON_DOT
    case 2: multiply_block(x, stride, c, sums, first, 2); break;
    case 3: multiply_block(x, stride, c, sums, first, 3); break;
    case 4: multiply_block(x, stride, c, sums, first, 4); break;
#endif
    default: break;
    }
}

/* The sums of rows x[0..rows) and the 16 outputs of a block row. */
static void multiply_outputs(const lil_constant *codes, size_t block_row, const int8_t *x, size_t padded_k, size_t rows,
                             int32_t *sums) {
    const size_t width = lil_block_cols(codes->format), block_bytes = lil_block_bytes(codes->format);
    const size_t blocks = (codes->cols + width - 1) / width, most = CHUNK * STEP / width;
    const lil_blocks stored = codes->layout == LIL_BLOCKS ? lil_blocks_of(codes)
                                                          : (lil_blocks){NULL, NULL, codes->data, 0};
    size_t begin = block_row * blocks, end = begin + blocks;
    if (stored.starts != NULL) {
        lil_block_range(&stored, block_row, &begin, &end);
    }
    chunk c;
    size_t i = begin;
    do { /* once at least: the sums of no blocks are 0 */
        const size_t count = end - i < most ? end - i : most;
        const uint8_t *columns = stored.columns == NULL ? NULL : stored.columns + 2 * i;
        prepare_chunk(&c, codes->format, stored.codes + i * block_bytes, columns, i - begin, count, padded_k);
        multiply_rows(x, padded_k, &c, sums, i == begin, rows);
        i += count;
    } while (i < end);
}

static void linear(const lil_call *call, const lil_part *part, finish how) {
    const finish_target target = finish_target_of(call);
    const size_t outputs = call->tensor[0].rows, padded_k = call->in[0].cols, rows = part->end - part->begin;
    const size_t groups = (rows + GROUP - 1) / GROUP;
    const size_t each = ((rows + groups - 1) / groups + BLOCK - 1) / BLOCK * BLOCK; /* GROUP is a multiple too */
    int32_t sums[GROUP * TILE_N];
    for (size_t r0 = part->begin; r0 < part->end; r0 += each) {
        const size_t count = part->end - r0 < each ? part->end - r0 : each;
        const int8_t *x = (const int8_t *)call->in[0].data + r0 * padded_k;
        for (size_t n0 = 0; n0 < outputs; n0 += TILE_N) {
            multiply_outputs(&call->tensor[0], n0 / TILE_N, x, padded_k, count, sums);
            finish_tile(&target, how, sums, r0, count, n0, outputs - n0 < TILE_N ? outputs - n0 : TILE_N);
        }
    }
}

static void linear_activated(const lil_call *call, const lil_part *part) {
    linear(call, part, (finish)call->a[0]);
}

static void linear_levels(const lil_call *call, const lil_part *part) {
    linear(call, part, (finish)(call->a[0] | FINISH_LEVELS));
}

static void linear_add(const lil_call *call, const lil_part *part) {
    linear(call, part, FINISH_ADD);
}

#endif
