/* The matrix product of AVX-512 VNNI. Internal.
 *
 * The instruction takes unsigned by signed bytes, so an offset is added to the weights' levels and the sums begin at
 * -offset times the sum of a row's activations: the result is the same integer. Weights of 32 outputs are decoded once
 * for all rows; the innermost loop holds the sums of up to 12 rows by 32 outputs in registers. */
#ifndef LIL_SIMD_LINEAR_AVX512_H
#define LIL_SIMD_LINEAR_AVX512_H

#include "simd_decode_avx512.h"
#include "simd_finish.h"

enum {
    MAX_ROWS = 12, /* 24 sums, 2 tiles of weights and a row's four activations: 27 of 32 registers */
    CHUNK = 1024,  /* inputs that are decoded at a time: 32 KiB for 32 outputs */
};

typedef struct linear_block {
    const int8_t *x;  /* the block's first row */
    size_t stride;    /* bytes from one row to the next */
    const uint8_t *w; /* [2][16 * CHUNK] levels with the offset, in tiles */
    size_t k;         /* inputs of the chunk */
    int32_t *sums;    /* [2][MAX_ROWS][16], added to */
} linear_block;

/* `rows` and `tiles` (1 or 2) are literals at each call. */
LIL_INLINE void multiply_block(const linear_block *b, size_t rows, size_t tiles) {
    lanes_i32 acc[MAX_ROWS][2];
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        acc[r][0] = lanes_i32_load(b->sums + 16 * r);
        acc[r][1] = lanes_i32_load(b->sums + 16 * (MAX_ROWS + r));
    }
    const size_t stride = b->stride;
    const int8_t *x0 = b->x, *x3 = x0 + 3 * stride, *x6 = x3 + 3 * stride, *x9 = x6 + 3 * stride;
    const uint8_t *w = b->w;
    for (const uint8_t *end = w + 16 * b->k; w < end; w += 64, x0 += 4, x3 += 4, x6 += 4, x9 += 4) {
        const __m512i first = _mm512_loadu_si512(w);
        const __m512i second = tiles == 2 ? _mm512_loadu_si512(w + 16 * CHUNK) : first;
        LIL_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const int8_t *x = (r < 3 ? x0 : r < 6 ? x3 : r < 9 ? x6 : x9) + r % 3 * stride;
            const __m512i four = _mm512_set1_epi32(*(const lanes_four *)(const void *)x);
            acc[r][0] = lanes_dpbusd(acc[r][0], first, four);
            if (tiles == 2) {
                acc[r][1] = lanes_dpbusd(acc[r][1], second, four);
            }
        }
    }
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        lanes_i32_store(b->sums + 16 * r, acc[r][0]);
        lanes_i32_store(b->sums + 16 * (MAX_ROWS + r), acc[r][1]);
    }
}

#define LIL_ROWS_CASE(n)                                                                                              \
    case n:                                                                                                           \
        if (tiles == 2) {                                                                                             \
            multiply_block(b, n, 2);                                                                                  \
        } else {                                                                                                      \
            multiply_block(b, n, 1);                                                                                  \
        }                                                                                                             \
        break

static void multiply_rows(const linear_block *b, size_t rows, size_t tiles) {
    switch (rows) {
        LIL_ROWS_CASE(1);
        LIL_ROWS_CASE(2);
        LIL_ROWS_CASE(3);
        LIL_ROWS_CASE(4);
        LIL_ROWS_CASE(5);
        LIL_ROWS_CASE(6);
        LIL_ROWS_CASE(7);
        LIL_ROWS_CASE(8);
        LIL_ROWS_CASE(9);
        LIL_ROWS_CASE(10);
        LIL_ROWS_CASE(11);
        LIL_ROWS_CASE(12);
    }
}

/* first[r] = -offset times the sum of row r's levels: at most 128 * 65536 * 127 < 2^31, and exact as floats before the
 * offset. */
static void first_sums(const int8_t *x, size_t stride, size_t rows, size_t offset, int32_t first[16]) {
    const __m512i ones = _mm512_set1_epi8(1);
    lanes exact[16];
    for (size_t r = 0; r < 16; r++) {
        lanes_i32 sum = lanes_i32_set(0);
        for (size_t k = 0; k < stride && r < rows; k += 64) {
            const size_t n = stride - k;
            const __mmask64 mask = n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
            sum = lanes_dpbusd(sum, ones, _mm512_maskz_loadu_epi8(mask, x + r * stride + k));
        }
        exact[r] = lanes_from_i32(sum);
    }
    lanes_i32_store(first, lanes_round(lanes_mul(lanes_tree16(exact), lanes_set(-(float)offset))));
}

static void linear_vnni(const lil_call *call, const lil_part *part, finish how) {
    const finish_target target = finish_target_of(call);
    const lil_constant *codes = &call->tensor[0];
    const size_t outputs = codes->rows, padded_k = call->in[0].cols, total = part->end - part->begin;
    const size_t blocks = (total + MAX_ROWS - 1) / MAX_ROWS, rows = (total + blocks - 1) / blocks;
    const size_t tile_row_bytes = 16 * padded_k / (codes->format == LIL_INT8 ? 1 : 2);
    const uint8_t offset = level_offset(codes->format);
    _Alignas(64) uint8_t decoded[2][16 * CHUNK];
    for (size_t n0 = 0; n0 < outputs; n0 += 32) {
        const size_t tiles = outputs - n0 > 16 ? 2 : 1;
        size_t prepared = SIZE_MAX;
        for (size_t i = 0; i < blocks; i++) {
            /* Blocks are of one size: the last one may overlap the one before, and give some outputs twice. */
            const size_t r0 = part->begin + (i * rows + rows <= total ? i * rows : total - rows);
            const int8_t *x = (const int8_t *)call->in[0].data + r0 * padded_k;
            _Alignas(64) int32_t sums[2][MAX_ROWS][16];
            int32_t first[16];
            first_sums(x, padded_k, rows, offset, first);
            for (size_t r = 0; r < rows; r++) {
                lanes_i32_store(sums[0][r], lanes_i32_set(first[r]));
                lanes_i32_store(sums[1][r], lanes_i32_set(first[r]));
            }
            for (size_t k0 = 0; k0 < padded_k; k0 += CHUNK) {
                const size_t k = padded_k - k0 < CHUNK ? padded_k - k0 : CHUNK;
                for (size_t j = 0; j < tiles && prepared != k0; j++) {
                    decode_unsigned(codes->data + (n0 / 16 + j) * tile_row_bytes, codes->format, k0, k, decoded[j]);
                }
                prepared = k0;
                const linear_block b = {x + k0, padded_k, decoded[0], k, sums[0][0]};
                multiply_rows(&b, rows, tiles);
            }
            for (size_t j = 0; j < tiles; j++) {
                const size_t n = n0 + 16 * j;
                finish_tile(&target, how, sums[j][0], r0, rows, n, outputs - n < 16 ? outputs - n : 16);
            }
        }
    }
}

#endif
