/* The matrix product of AVX-512 VNNI. Internal.
 *
 * The instruction takes unsigned by signed bytes, so an offset is added to one side's levels and taken back as the
 * offset times the sum of the other side's: the result is the same integer.
 *
 * Layout `tiles`: weights of 32 outputs are decoded, with the offset, once for 96 rows (beyond 1024 inputs: once a
 * block of rows); the innermost loop holds the sums of up to 12 rows by 32 outputs in registers. Layout `blocks`: what
 * is not stored is not there for the loop either. It holds up to 22 rows by 16 outputs and decodes each stored block on
 * its way in; the offset is on the activations. */
#ifndef LIL_SIMD_LINEAR_AVX512_H
#define LIL_SIMD_LINEAR_AVX512_H

#include "simd_decode_avx512.h"
#include "simd_finish.h"

enum {
    MAX_ROWS = 12, /* 24 sums, 2 tiles of weights and a row's four activations: 27 of 32 registers */
    MAX_SPARSE_ROWS = 22,
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
        LIL_ROWS_CASE(12);
        LIL_ROWS_CASE(11);
        LIL_ROWS_CASE(8);
        LIL_ROWS_CASE(4);
        LIL_ROWS_CASE(1);
    }
}

/* How many rows are taken together, of `total`: of the counts that there is code for (the last is 1), the one that
 * takes as few rows twice as can be, if each block of rows costs as much as one row more. */
static size_t rows_together(const uint8_t *counts, size_t total) {
    size_t best = 1, least = SIZE_MAX;
    for (;; counts++) {
        const size_t work = (total + *counts - 1) / *counts * (*counts + 1u);
        if (*counts <= total && work < least) {
            best = *counts;
            least = work;
        }
        if (*counts == 1) {
            return best;
        }
    }
}

/* sums[r] = -offset times the sum of row r's levels, 16 times: at most 128 * 65536 * 127 < 2^31, and before the offset
 * exact as a float. */
static void first_sums(const int8_t *x, size_t stride, size_t rows, float offset, int32_t sums[][16]) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (size_t r0 = 0; r0 < rows; r0 += 16) {
        lanes exact[16];
        _Alignas(64) int32_t first[16];
        for (size_t r = 0; r < 16; r++) {
            lanes_i32 sum = lanes_i32_set(0);
            for (size_t k = 0; k < stride && r0 + r < rows; k += 64) {
                const size_t n = stride - k;
                const __mmask64 mask = n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
                sum = lanes_dpbusd(sum, ones, _mm512_maskz_loadu_epi8(mask, x + (r0 + r) * stride + k));
            }
            exact[r] = lanes_from_i32(sum);
        }
        lanes_i32_store(first, lanes_round(lanes_mul(lanes_tree16(exact), lanes_set(-offset))));
        for (size_t r = 0; r < 16 && r0 + r < rows; r++) {
            lanes_i32_store(sums[r0 + r], lanes_i32_set(first[r]));
        }
    }
}

enum { GROUP = 8 * MAX_ROWS }; /* rows whose first sums are kept */

/* Rows [begin, begin + total), total <= GROUP. */
static void dense_group(const lil_call *call, finish how, size_t begin, size_t total) {
    const finish_target target = finish_target_of(call);
    const lil_constant *codes = &call->tensor[0];
    const size_t outputs = codes->rows, padded_k = call->in[0].cols;
    static const uint8_t counts[] = {12, 11, 8, 4, 1};
    const size_t rows = rows_together(counts, total), blocks = (total + rows - 1) / rows;
    const size_t row_bytes = tiles_bytes(codes->format, padded_k);
    const decoder d = decoder_of(codes->format, true);
    const int8_t *x = (const int8_t *)call->in[0].data + begin * padded_k;
    _Alignas(64) uint8_t decoded[2][16 * CHUNK];
    _Alignas(64) int32_t first[GROUP][16];
    first_sums(x, padded_k, total, unsigned_offset(codes->format), first);
    for (size_t n0 = 0; n0 < outputs; n0 += 32) {
        const size_t tiles = outputs - n0 > 16 ? 2 : 1;
        size_t prepared = SIZE_MAX; /* the chunk of inputs that is decoded */
        for (size_t i = 0; i < blocks; i++) {
            /* Blocks are of one size: the last one may overlap the one before, and give some outputs twice. */
            const size_t r0 = i * rows + rows <= total ? i * rows : total - rows;
            _Alignas(64) int32_t sums[2][MAX_ROWS][16];
            memcpy(sums[0], first[r0], rows * sizeof first[0]);
            memcpy(sums[1], first[r0], rows * sizeof first[0]);
            for (size_t k0 = 0; k0 < padded_k; k0 += CHUNK) {
                const size_t k = padded_k - k0 < CHUNK ? padded_k - k0 : CHUNK;
                for (size_t j = 0; j < tiles && prepared != k0; j++) {
                    decode_tiles(&d, codes->data + (n0 / 16 + j) * row_bytes + tiles_bytes(codes->format, k0), k,
                                 decoded[j]);
                }
                prepared = k0;
                const linear_block b = {x + r0 * padded_k + k0, padded_k, decoded[0], k, sums[0][0]};
                multiply_rows(&b, rows, tiles);
            }
            for (size_t j = 0; j < tiles; j++) {
                const size_t n = n0 + 16 * j;
                finish_tile(&target, how, sums[j][0], begin + r0, rows, n, outputs - n < 16 ? outputs - n : 16);
            }
        }
    }
}

/* Stored blocks of 16 outputs by some rows. */
typedef struct sparse_block {
    const uint8_t (*x)[CHUNK]; /* activations of inputs [k0, k0 + k), with 128 added */
    size_t k0;
    size_t k;
    const decoder *decoder;
    const lil_blocks *blocks;
    size_t next, end;          /* numbers of the stored blocks; `next` moves on */
    int32_t (*sums)[16];       /* added to */
} sparse_block;

/* The blocks of the chunk; `rows` is a literal at each call. */
LIL_INLINE void multiply_stored(sparse_block *b, size_t rows) {
    const size_t width = lil_block_cols(b->decoder->format), block_bytes = lil_block_bytes(b->decoder->format);
    const __m512i ones = _mm512_set1_epi8(1);
    lanes_i32 acc[MAX_SPARSE_ROWS], weights = lanes_i32_set(0);
    size_t i = b->next;
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        acc[r] = lanes_i32_load(b->sums[r]);
    }
    for (; i < b->end; i++) {
        const uint8_t *codes = b->blocks->codes + i * block_bytes;
        const size_t first = lil_u16_at(b->blocks->columns, i) * width - b->k0; /* below the chunk: wraps to huge */
        if (first >= b->k) {
            break;
        }
        for (size_t k = first; k < first + width && k < b->k; k += 8) {
            __m512i tile[2];
            decode_pair(b->decoder, codes, (k - first) / 8, tile);
            weights = lanes_dpbusd(lanes_dpbusd(weights, ones, tile[0]), ones, tile[1]);
            const uint8_t *x = b->x[0] + k;
            LIL_UNROLL
            for (size_t r = 0; r < rows; r++) {
                const lanes_four *four = (const lanes_four *)(const void *)(x + r * CHUNK);
                acc[r] = lanes_dpbusd(acc[r], _mm512_set1_epi32(four[0]), tile[0]);
                acc[r] = lanes_dpbusd(acc[r], _mm512_set1_epi32(four[1]), tile[1]);
            }
        }
    }
    const lanes_i32 offset = _mm512_slli_epi32(weights, 7);
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        lanes_i32_store(b->sums[r], _mm512_sub_epi32(acc[r], offset));
    }
    b->next = i;
}

static void multiply_stored_rows(sparse_block *b, size_t rows) {
    switch (rows) {
    case 22: multiply_stored(b, 22); break;
    case 11: multiply_stored(b, 11); break;
    case 4: multiply_stored(b, 4); break;
    case 1: multiply_stored(b, 1); break;
    }
}

/* Inputs [k0, k0 + k) of some rows, with 128 added. */
static void prepare_activations(const int8_t *x, size_t padded_k, size_t rows, size_t k0, size_t k,
                                uint8_t out[][CHUNK]) {
    const __m512i offset = _mm512_set1_epi8((char)0x80);
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < k; i += 64) {
            const __mmask64 mask = k - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (k - i)) - 1;
            const __m512i levels = _mm512_maskz_loadu_epi8(mask, x + r * padded_k + k0 + i);
            _mm512_storeu_si512(out[r] + i, _mm512_xor_si512(levels, offset));
        }
    }
}

static void sparse_rows_from(const lil_call *call, finish how, const lil_blocks *blocks, size_t r0, size_t rows) {
    const finish_target target = finish_target_of(call);
    const lil_constant *codes = &call->tensor[0];
    const size_t padded_k = call->in[0].cols;
    const decoder d = decoder_of(codes->format, false);
    const int8_t *x = (const int8_t *)call->in[0].data + r0 * padded_k;
    _Alignas(64) uint8_t activations[MAX_SPARSE_ROWS][CHUNK];
    _Alignas(64) int32_t sums[MAX_SPARSE_ROWS][16];
    sparse_block b = {.x = (const uint8_t(*)[CHUNK])activations, .decoder = &d, .blocks = blocks, .sums = sums};
    size_t prepared = SIZE_MAX; /* the chunk of inputs whose activations are there */
    for (size_t n = 0; n < codes->rows; n += 16) {
        lil_block_range(blocks, n / 16, &b.next, &b.end);
        memset(sums, 0, sizeof sums);
        for (b.k0 = 0; b.k0 < padded_k; b.k0 += CHUNK) {
            b.k = padded_k - b.k0 < CHUNK ? padded_k - b.k0 : CHUNK;
            if (prepared != b.k0) {
                prepare_activations(x, padded_k, rows, b.k0, b.k, activations);
                prepared = b.k0;
            }
            multiply_stored_rows(&b, rows);
        }
        finish_tile(&target, how, sums[0], r0, rows, n, codes->rows - n < 16 ? codes->rows - n : 16);
    }
}

static void sparse(const lil_call *call, const lil_part *part, finish how) {
    const lil_blocks blocks = lil_blocks_of(&call->tensor[0]);
    static const uint8_t counts[] = {22, 11, 4, 1};
    const size_t total = part->end - part->begin, rows = rows_together(counts, total);
    for (size_t r = 0; r < total; r += rows) {
        /* The last rows may overlap those before, and give some outputs twice. */
        sparse_rows_from(call, how, &blocks, part->begin + (r + rows <= total ? r : total - rows), rows);
    }
}

static void linear_vnni(const lil_call *call, const lil_part *part, finish how) {
    if (call->tensor[0].layout == LIL_BLOCKS) {
        sparse(call, part, how);
        return;
    }
    for (size_t r = part->begin; r < part->end; r += GROUP) {
        dense_group(call, how, r, part->end - r < GROUP ? part->end - r : GROUP);
    }
}

#endif
