/* The matrix product of AVX2. Internal.
 *
 * An instruction multiplies unsigned by signed bytes and adds pairs of products in 16 bits, which must hold them. So an
 * offset makes the weights' levels unsigned, and the sums begin at -offset times the sum of a row's activations:
 *   pot4  0..128: a pair is at most 2 * 128 * 127 < 2^15, and is added to 32 bits at once;
 *   int4  1..15: eight pairs are added in 16 bits, 16 * 15 * 127 < 2^15, and then once to 32 bits.
 * Levels and activations of int8 are widened to 16 bits: an instruction adds pairs of their products in 32 bits.
 *
 * The weights of 16 outputs are decoded once for a group of rows; the innermost loops hold the sums of up to 4 rows by
 * 16 outputs in registers. */
#ifndef LIL_SIMD_LINEAR_AVX2_H
#define LIL_SIMD_LINEAR_AVX2_H

#include "simd_finish.h"

enum {
    TILE_N = 16,
    STEP = 8,           /* inputs that are decoded together: two tiles */
    CHUNK = 128,        /* steps that are decoded at a time */
    GROUP = 80,         /* rows that share what is decoded, at most */
    BLOCK = 4,          /* rows whose sums stay in registers */
    RUN = 8,            /* int4: tiles whose products are added in 16 bits */
    NUM_WORDS = 1 << 14 /* int8: activations of a group, widened */
};

/* Some rows by 16 outputs. A tile of 64 bytes has four levels of 16 outputs, or, widened, two; each is multiplied by
 * four bytes of a row's activations. */
typedef struct product {
    const uint8_t *x; /* the first row's */
    size_t stride;    /* bytes from one row to the next */
    const uint8_t *w;
    size_t tiles;
    int32_t *sums;    /* [rows][16], added to */
} product;

LIL_INLINE __m256i load_bytes(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
LIL_INLINE void store_bytes(void *p, __m256i x) {
    _mm256_storeu_si256((__m256i *)p, x);
}

/* As assembly because compilers make trees of the chains, and then run out of registers. */
LIL_INLINE __m256i add_words(__m256i a, __m256i b) {
    __m256i sum;
    __asm__("vpaddw %2, %1, %0" : "=x"(sum) : "x"(a), "x"(b));
    return sum;
}
LIL_INLINE __m256i add_ints(__m256i a, __m256i b) {
    __m256i sum;
    __asm__("vpaddd %2, %1, %0" : "=x"(sum) : "x"(a), "x"(b));
    return sum;
}

LIL_INLINE void load_sums(const int32_t *sums, size_t rows, __m256i acc[BLOCK][2]) {
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        acc[r][0] = load_bytes(sums + 16 * r);
        acc[r][1] = load_bytes(sums + 16 * r + 8);
    }
}
LIL_INLINE void store_sums(int32_t *sums, size_t rows, __m256i acc[BLOCK][2]) {
    LIL_UNROLL
    for (size_t r = 0; r < rows; r++) {
        store_bytes(sums + 16 * r, acc[r][0]);
        store_bytes(sums + 16 * r + 8, acc[r][1]);
    }
}

/* Each pair of products goes to 32 bits: of words, or (pot4) of bytes. `words` and `rows` are literals at each call, here
 * and below. */
LIL_INLINE void multiply_pairs(const product *p, bool words, size_t rows) {
    enum { TOGETHER = 2 }; /* p->tiles is even */
    const __m256i ones = _mm256_set1_epi16(1);
    const size_t stride = p->stride;
    const uint8_t *x = p->x, *w = p->w;
    __m256i acc[BLOCK][2];
    load_sums(p->sums, rows, acc);
    for (const uint8_t *end = w + 64 * p->tiles; w < end; w += 64 * TOGETHER, x += 4 * TOGETHER) {
        LIL_UNROLL
        for (size_t i = 0; i < TOGETHER; i++) {
            const __m256i w0 = load_bytes(w + 64 * i), w1 = load_bytes(w + 64 * i + 32);
            LIL_UNROLL
            for (size_t r = 0; r < rows; r++) {
                const __m256i four = lanes_repeat_four(x + r * stride + 4 * i);
                const __m256i p0 = words ? _mm256_madd_epi16(w0, four)
                                         : _mm256_madd_epi16(_mm256_maddubs_epi16(w0, four), ones);
                const __m256i p1 = words ? _mm256_madd_epi16(w1, four)
                                         : _mm256_madd_epi16(_mm256_maddubs_epi16(w1, four), ones);
                acc[r][0] = add_ints(acc[r][0], p0);
                acc[r][1] = add_ints(acc[r][1], p1);
            }
        }
    }
    store_sums(p->sums, rows, acc);
}

/* int4: the pairs of `run` tiles are added in 16 bits, and then to 32; p->tiles is a multiple of the literal `run`. */
LIL_INLINE void multiply_runs(const product *p, size_t run, size_t rows) {
    const __m256i ones = _mm256_set1_epi16(1);
    const size_t stride = p->stride;
    const uint8_t *x = p->x, *w = p->w;
    __m256i acc[BLOCK][2];
    load_sums(p->sums, rows, acc);
    for (const uint8_t *end = w + 64 * p->tiles; w < end; w += 64 * run, x += 4 * run) {
        __m256i pairs[BLOCK][2];
        LIL_UNROLL
        for (size_t i = 0; i < run; i++) {
            const __m256i w0 = load_bytes(w + 64 * i), w1 = load_bytes(w + 64 * i + 32);
            LIL_UNROLL
            for (size_t r = 0; r < rows; r++) {
                const __m256i four = lanes_repeat_four(x + r * stride + 4 * i);
                const __m256i p0 = _mm256_maddubs_epi16(w0, four), p1 = _mm256_maddubs_epi16(w1, four);
                pairs[r][0] = i == 0 ? p0 : add_words(pairs[r][0], p0);
                pairs[r][1] = i == 0 ? p1 : add_words(pairs[r][1], p1);
            }
        }
        LIL_UNROLL
        for (size_t r = 0; r < rows; r++) {
            acc[r][0] = add_ints(acc[r][0], _mm256_madd_epi16(pairs[r][0], ones));
            acc[r][1] = add_ints(acc[r][1], _mm256_madd_epi16(pairs[r][1], ones));
        }
    }
    store_sums(p->sums, rows, acc);
}

LIL_INLINE void multiply_int4(const product *p, size_t rows) {
    product whole = *p, rest = *p;
    rest.tiles = p->tiles % RUN;
    whole.tiles = p->tiles - rest.tiles;
    rest.x += 4 * whole.tiles;
    rest.w += 64 * whole.tiles;
    if (whole.tiles > 0) {
        multiply_runs(&whole, RUN, rows);
    }
    if (rest.tiles > 0) {
        multiply_runs(&rest, 2, rows);
    }
}

#define LIL_FORMAT_CASES(n)                                                                                           \
    case n:                                                                                                           \
        if (format == LIL_POT4) {                                                                                     \
            multiply_pairs(p, false, n);                                                                              \
        } else if (format == LIL_INT4) {                                                                              \
            multiply_int4(p, n);                                                                                      \
        } else {                                                                                                      \
            multiply_pairs(p, true, n);                                                                               \
        }                                                                                                             \
        break

static void multiply(const product *p, uint16_t format, size_t rows) {
    switch (rows) {
        LIL_FORMAT_CASES(1);
        LIL_FORMAT_CASES(2);
        LIL_FORMAT_CASES(3);
        LIL_FORMAT_CASES(4);
    }
}

/* What is added to a format's levels here. */
LIL_INLINE int32_t level_offset(uint16_t format) {
    return format == LIL_POT4 ? 64 : format == LIL_INT4 ? 8 : 0;
}

/* Levels with the offset of `steps` steps of 4-bit codes. */
static void decode_4bit(const uint8_t *codes, uint16_t format, size_t steps, uint8_t *w) {
    const __m256i levels = _mm256_broadcastsi128_si256(lanes_bytes(lil_levels_4bit[format - LIL_INT4]));
    const __m256i table = _mm256_add_epi8(levels, _mm256_set1_epi8((char)level_offset(format)));
    const __m256i nibble = _mm256_set1_epi8(15);
    for (const uint8_t *end = codes + 64 * steps; codes < end; codes += 64, w += 128) {
        LIL_UNROLL
        for (size_t i = 0; i < 64; i += 32) {
            const __m256i both = load_bytes(codes + i), upper = _mm256_srli_epi16(both, 4);
            store_bytes(w + i, _mm256_shuffle_epi8(table, _mm256_and_si256(both, nibble)));
            store_bytes(w + i + 64, _mm256_shuffle_epi8(table, _mm256_and_si256(upper, nibble)));
        }
    }
}

/* Codes of 8 bits as words: of each tile the inputs 0 and 1 of all outputs, then 2 and 3. */
static void widen_codes(const uint8_t *codes, size_t steps, uint8_t *w) {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, /* both halves */
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    for (const uint8_t *end = codes + 128 * steps; codes < end; codes += 64, w += 128) {
        LIL_UNROLL
        for (size_t i = 0; i < 64; i += 32) { /* eight outputs */
            const __m256i pairs = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(load_bytes(codes + i), order), 0xD8);
            store_bytes(w + i, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(pairs)));
            store_bytes(w + i + 64, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(pairs, 1)));
        }
    }
}

/* Activations of n inputs, a multiple of 8, as words: [rows][n]. */
static void widen_rows(const int8_t *x, size_t stride, size_t rows, size_t n, int16_t *words) {
    for (size_t r = 0; r < rows; r++, x += stride, words += n) {
        size_t k = 0;
        for (; k + 16 <= n; k += 16) {
            store_bytes(words + k, _mm256_cvtepi8_epi16(lanes_bytes(x + k)));
        }
        if (k < n) {
            const __m128i rest = _mm_loadl_epi64((const __m128i *)(const void *)(x + k));
            _mm_storeu_si128((__m128i *)(void *)(words + k), _mm_cvtepi8_epi16(rest));
        }
    }
}

/* first[r] = -offset times the sum of row r: |sum| <= 127 * 65536, and 64 times that is an int32. */
static void first_sums(const int8_t *x, size_t stride, size_t rows, int32_t offset, int32_t *first) {
    const __m128i ones = _mm_set1_epi8(1), wide_ones = _mm_set1_epi16(1);
    for (size_t r = 0; r < rows && offset != 0; r++, x += stride) {
        __m128i sum = _mm_setzero_si128();
        size_t k = 0;
        for (; k + 16 <= stride; k += 16) {
            sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(ones, lanes_bytes(x + k)), wide_ones));
        }
        if (k < stride) {
            const __m128i rest = _mm_loadl_epi64((const __m128i *)(const void *)(x + k));
            sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(ones, rest), wide_ones));
        }
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
        sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
        first[r] = -offset * _mm_cvtsi128_si32(sum);
    }
}

/* Weights of some steps of 16 outputs, ready to be multiplied; and where the activations are. */
typedef struct chunk {
    _Alignas(64) uint8_t w[CHUNK * 256];
    _Alignas(64) int16_t words[NUM_WORDS];
    const uint8_t *x;
    size_t stride; /* bytes */
    size_t tiles;
} chunk;

/* Steps [first, first + count) of rows that are padded_k apart. `again`: the activations are those of the last call. */
static void prepare(chunk *c, const lil_constant *codes, size_t block_row, const int8_t *x, size_t padded_k,
                    size_t rows, size_t first, size_t count, bool again) {
    const size_t step_bytes = codes->format == LIL_INT8 ? 128 : 64;
    const uint8_t *at = codes->data + (block_row * (padded_k / STEP) + first) * step_bytes;
    if (codes->format != LIL_INT8) {
        decode_4bit(at, codes->format, count, c->w);
        c->x = (const uint8_t *)x + first * STEP;
        c->stride = padded_k;
        c->tiles = 2 * count;
        return;
    }
    widen_codes(at, count, c->w);
    if (!again) {
        widen_rows(x + first * STEP, padded_k, rows, count * STEP, c->words);
    }
    c->x = (const uint8_t *)c->words;
    c->stride = 2 * STEP * count;
    c->tiles = 4 * count;
}

/* Rows [r0, r0 + rows), at most GROUP, and NUM_WORDS activations of a chunk. */
static void multiply_group(const lil_call *call, finish how, size_t r0, size_t rows) {
    const finish_target target = finish_target_of(call);
    const lil_constant *codes = &call->tensor[0];
    const size_t outputs = codes->rows, padded_k = call->in[0].cols, steps = padded_k / STEP;
    const int8_t *x = (const int8_t *)call->in[0].data + r0 * padded_k;
    chunk c;
    _Alignas(64) int32_t sums[GROUP][TILE_N];
    int32_t start[GROUP] = {0};
    first_sums(x, padded_k, rows, level_offset(codes->format), start);
    for (size_t n0 = 0; n0 < outputs; n0 += TILE_N) {
        for (size_t r = 0; r < rows; r++) {
            lanes_i32_store(sums[r], lanes_i32_set(start[r]));
        }
        for (size_t s = 0; s < steps; s += CHUNK) {
            const size_t count = steps - s < CHUNK ? steps - s : CHUNK;
            prepare(&c, codes, n0 / TILE_N, x, padded_k, rows, s, count, n0 > 0 && steps <= CHUNK);
            for (size_t r = 0; r < rows; r += BLOCK) {
                const product p = {c.x + r * c.stride, c.stride, c.w, c.tiles, sums[r]};
                multiply(&p, codes->format, rows - r < BLOCK ? rows - r : BLOCK);
            }
        }
        finish_tile(&target, how, sums[0], r0, rows, n0, outputs - n0 < TILE_N ? outputs - n0 : TILE_N);
    }
}

static void linear_any(const lil_call *call, const lil_part *part, finish how) {
    const size_t k = call->in[0].cols < CHUNK * STEP ? call->in[0].cols : CHUNK * STEP;
    const size_t limit = call->tensor[0].format == LIL_INT8 && NUM_WORDS / k < GROUP ? NUM_WORDS / k : GROUP;
    const size_t rows = part->end - part->begin, groups = (rows + limit - 1) / limit;
    const size_t each = (rows + groups - 1) / groups;
    for (size_t r0 = part->begin; r0 < part->end; r0 += each) {
        multiply_group(call, how, r0, part->end - r0 < each ? part->end - r0 : each);
    }
}

static bool known(const lil_constant *codes) {
    return codes->format <= LIL_POT4 && codes->layout == LIL_TILES;
}

static void linear(const lil_call *call, const lil_part *part) {
    static const finish activations[] = {FINISH_NONE, FINISH_RELU, FINISH_GELU};
    if (known(&call->tensor[0])) {
        linear_any(call, part, activations[call->a[0]]);
    } else {
        lil_op_linear(call, part);
    }
}

static void linear_add(const lil_call *call, const lil_part *part) {
    if (known(&call->tensor[0])) {
        linear_any(call, part, FINISH_ADD);
    } else {
        lil_op_linear_add(call, part);
    }
}

#endif
