/* The matrix product of AVX2. Internal.
 *
 * An instruction multiplies unsigned by signed bytes and adds pairs of products in 16 bits, which must hold them. So an
 * offset makes the weights' levels unsigned, and is taken away again as offset times the sum of a row's activations:
 *   int4  levels + 8 are 1..15: eight pairs are added in 16 bits, 16 * 15 * 127 < 2^15, and then once to 32 bits;
 *   int6  levels + 32 are 1..63: two pairs are, 4 * 63 * 127 < 2^15;
 *   apot4 levels + 10 are 0..20: two pairs too, in int6's loop: six would fit, in one of their own;
 *   pot4  levels + 64 are 0..128: a pair is at most 2 * 128 * 127 < 2^15, and goes to 32 bits at once. But in most
 *         rows any eight activations that meet have magnitudes of at most 511 in all: then four pairs less the
 *         offset's share fit 16 bits, 64 * 511 < 2^15, where what is on the way wraps around.
 * Levels of int8 and apot6 (up to 100: no pair with an offset would fit), and their activations, are widened to 16 bits:
 * an instruction adds pairs of their products in 32 bits.
 *
 * The weights of 16 outputs are decoded once for a group of rows; the innermost loops hold the sums of up to 4 rows by
 * 16 outputs in registers. */
#ifndef LIL_SIMD_LINEAR_AVX2_H
#define LIL_SIMD_LINEAR_AVX2_H

#include "simd_finish.h"
#include "simd_product_avx2.h"

enum {
    TILE_N = 16,
    STEP = 8,            /* inputs that are decoded together: two tiles */
    CHUNK = 128,         /* steps that are decoded at a time */
    GROUP = 80,          /* rows that share what is decoded, at most */
    SMALL = 511,         /* eight activations of a run: their magnitudes together */
    NUM_WORDS = 1 << 14, /* of a group: activations, widened; pot4: twice as many as biases */
};

/* What is added to a format's levels here. */
LIL_INLINE int32_t level_offset(uint16_t format) {
    switch (format) {
    case LIL_POT4: return 64;
    case LIL_INT6: return 32;
    case LIL_APOT4: return 10;
    case LIL_INT4: return 8;
    default: return 0; /* widened */
    }
}

/* 32 codes of each of a 6-bit block's four tiles, from code i on. */
LIL_INLINE void codes_6bit(const uint8_t *block, size_t i, __m256i code[4]) {
    const __m256i nibble = _mm256_set1_epi8(15), high = _mm256_set1_epi8(0x30), upper = load_bytes(block + i + 128);
    const __m256i low[2] = {load_bytes(block + i), load_bytes(block + i + 64)};
    const __m256i upper_bits[4] = {_mm256_slli_epi16(upper, 4), _mm256_slli_epi16(upper, 2), upper,
                                   _mm256_srli_epi16(upper, 2)};
    LIL_UNROLL
    for (size_t t = 0; t < 4; t++) {
        const __m256i bits = t % 2 == 0 ? low[t / 2] : _mm256_srli_epi16(low[t / 2], 4);
        code[t] = _mm256_or_si256(_mm256_and_si256(bits, nibble), _mm256_and_si256(upper_bits[t], high));
    }
}

/* Levels with the offset of `steps` steps of int6, or one more: a level + 32 is its code with one bit turned. */
static void decode_int6(const uint8_t *codes, size_t steps, uint8_t *w) {
    const __m256i turned = _mm256_set1_epi8(0x20);
    for (size_t s = 0; s < steps; s += 2, codes += 192, w += 256) {
        LIL_UNROLL
        for (size_t i = 0; i < 64; i += 32) {
            __m256i code[4];
            codes_6bit(codes, i, code);
            LIL_UNROLL
            for (size_t t = 0; t < 4; t++) {
                store_bytes(w + 64 * t + i, _mm256_xor_si256(code[t], turned));
            }
        }
    }
}

/* Levels with the offset of `steps` steps of 4-bit codes. */
static void decode_4bit(const uint8_t *codes, uint16_t format, size_t steps, uint8_t *w) {
    const __m256i levels = _mm256_broadcastsi128_si256(lanes_bytes(lil_levels_of(format)));
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

/* The same of `steps` steps of apot6, or one more. Of a code's six bits the upper one is the sign. */
static void widen_apot6(const uint8_t *codes, size_t steps, uint8_t *w) {
    const __m256i small = _mm256_broadcastsi128_si256(lanes_bytes(lil_levels_apot6));
    const __m256i large = _mm256_broadcastsi128_si256(lanes_bytes(lil_levels_apot6 + 16)), one = _mm256_set1_epi8(1);
    for (size_t s = 0; s < steps; s += 2, codes += 192, w += 512) {
        uint8_t levels[256];
        LIL_UNROLL
        for (size_t i = 0; i < 64; i += 32) {
            __m256i code[4];
            codes_6bit(codes, i, code);
            LIL_UNROLL
            for (size_t t = 0; t < 4; t++) { /* tables look at four bits, and the choice between them at bit 7 */
                const __m256i size = _mm256_blendv_epi8(_mm256_shuffle_epi8(small, code[t]),
                                                        _mm256_shuffle_epi8(large, code[t]),
                                                        _mm256_slli_epi16(code[t], 3));
                const __m256i sign = _mm256_or_si256(_mm256_slli_epi16(code[t], 2), one); /* never 0 */
                store_bytes(levels + 64 * t + i, _mm256_sign_epi8(size, sign));
            }
        }
        widen_codes(levels, 2, w);
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

/* -offset times the sum of n activations, a multiple of 8: at most 64 * 127 * 65536 < 2^31. */
static int32_t offset_sum(const int8_t *x, size_t n, int32_t offset) {
    const __m128i ones = _mm_set1_epi8(1), wide_ones = _mm_set1_epi16(1);
    __m128i sum = _mm_setzero_si128();
    size_t k = 0;
    for (; k + 16 <= n; k += 16) {
        sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(ones, lanes_bytes(x + k)), wide_ones));
    }
    if (k < n) {
        const __m128i rest = _mm_loadl_epi64((const __m128i *)(const void *)(x + k));
        sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(ones, rest), wide_ones));
    }
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
    return -offset * _mm_cvtsi128_si32(sum);
}

/* Of the 16 activations of each of two runs, that is of each half: [S, S, A, A], two words each, of which the lower one
 * is of the inputs 0 and 1, the upper one of 2 and 3 of each tile: S the sum, A that of the magnitudes. */
LIL_INLINE __m256i sums_of_runs(__m256i x) {
    const __m256i ones = _mm256_set1_epi8(1);
    const __m256i sums = _mm256_maddubs_epi16(ones, x), sizes = _mm256_maddubs_epi16(_mm256_abs_epi8(x), ones);
    const __m256i two = _mm256_add_epi16(_mm256_unpacklo_epi64(sums, sizes), _mm256_unpackhi_epi64(sums, sizes));
    return _mm256_add_epi16(two, _mm256_shuffle_epi32(two, 0xB1));
}

/* Two runs' biases, -64 times their sums modulo 2^16, of which only the first `count` are stored. */
LIL_INLINE void store_biases(int32_t *bias, __m256i sums, size_t count) {
    const __m256i biases = _mm256_mullo_epi16(sums, _mm256_set1_epi16(-64));
    bias[0] = _mm256_cvtsi256_si32(biases);
    if (count > 1) {
        bias[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(biases, 1));
    }
}

/* The biases of a row of pot4. False where a run's sum may not fit. */
static bool biases_of(const int8_t *x, size_t n, int32_t *bias) {
    __m256i largest = _mm256_setzero_si256();
    size_t k = 0;
    for (; k + 32 <= n; k += 32, bias += 2) {
        const __m256i sums = sums_of_runs(load_bytes(x + k));
        largest = _mm256_max_epi16(largest, sums);
        store_biases(bias, sums, 2);
    }
    if (k < n) {
        int8_t rest[32] = {0};
        memcpy(rest, x + k, n - k);
        const __m256i sums = sums_of_runs(load_bytes(rest));
        largest = _mm256_max_epi16(largest, sums);
        store_biases(bias, sums, n - k > 16 ? 2 : 1);
    }
    return _mm256_movemask_epi8(_mm256_cmpgt_epi16(largest, _mm256_set1_epi16(SMALL))) == 0;
}

/* Weights of `steps` steps, from whole blocks on, ready to be multiplied; gives the tiles that are multiplied. */
static size_t decode(const uint8_t *codes, uint16_t format, size_t steps, uint8_t *w) {
    if (format == LIL_INT8) {
        widen_codes(codes, steps, w);
        return 4 * steps;
    }
    if (format == LIL_APOT6) {
        widen_apot6(codes, steps, w);
        return 4 * steps;
    }
    if (format == LIL_INT6) {
        decode_int6(codes, steps, w);
    } else {
        decode_4bit(codes, format, steps, w);
    }
    return 2 * steps;
}

/* A group of rows: where their sums begin, and the biases of those that have them. */
typedef struct group {
    const int8_t *x;
    size_t rows;
    size_t padded_k;
    uint8_t order[GROUP]; /* the rows, those with biases first */
    size_t num_biased;
    size_t num_biases;    /* of one row */
    int32_t start[GROUP];
    union {
        int32_t biases[NUM_WORDS / 2];         /* pot4 in tiles */
        _Alignas(64) int16_t words[NUM_WORDS]; /* where they are widened: of the last chunk */
        int8_t bytes[2 * NUM_WORDS];           /* others in blocks: the same */
    } room;
} group;

/* Weights of some steps of 16 outputs, ready to be multiplied, and where their activations are. */
typedef struct chunk {
    _Alignas(64) uint8_t w[CHUNK * 256];
    size_t first; /* step */
    const uint8_t *x;
    size_t stride; /* bytes */
    size_t tiles;
} chunk;

/* Steps [first, first + count) of tiles. `again`: the group's last chunk was of the same steps. */
static void prepare(chunk *c, const lil_constant *codes, size_t block_row, group *g, size_t first, size_t count,
                    bool again) {
    const size_t block_steps = lil_block_cols(codes->format) / STEP, steps = g->padded_k / STEP;
    const size_t block = block_row * ((steps + block_steps - 1) / block_steps) + first / block_steps;
    c->first = first;
    c->tiles = decode(codes->data + block * lil_block_bytes(codes->format), codes->format, count, c->w);
    if (!is_widened(codes->format)) {
        c->x = (const uint8_t *)g->x + first * STEP;
        c->stride = g->padded_k;
        return;
    }
    if (!again) {
        widen_rows(g->x + first * STEP, g->padded_k, g->rows, count * STEP, g->room.words);
    }
    c->x = (const uint8_t *)g->room.words;
    c->stride = 2 * STEP * count;
}

/* Eight activations from input k on, or zeros where there are none. */
LIL_INLINE __m128i step_at(const int8_t *x, size_t k, size_t padded_k) {
    return k < padded_k ? _mm_loadl_epi64((const __m128i *)(const void *)(x + k)) : _mm_setzero_si128();
}

/* `count` stored blocks from number `first` on; the activations that they meet are copied together. */
static void prepare_stored(chunk *c, const lil_blocks *stored, uint16_t format, group *g, size_t first, size_t count) {
    const size_t width = lil_block_cols(format), n = count * width;
    const bool widened = is_widened(format);
    c->first = 0;
    c->tiles = decode(stored->codes + first * lil_block_bytes(format), format, n / STEP, c->w);
    c->x = (const uint8_t *)g->room.bytes;
    c->stride = widened ? 2 * n : n;
    for (size_t i = 0; i < n; i += STEP) {
        const size_t k = lil_u16_at(stored->columns, first + i / width) * width + i % width;
        const int8_t *x = g->x;
        for (size_t r = 0; r < g->rows; r++, x += g->padded_k) {
            const __m128i levels = step_at(x, k, g->padded_k);
            if (widened) {
                _mm_storeu_si128((__m128i *)(void *)(g->room.words + r * n + i), _mm_cvtepi8_epi16(levels));
            } else {
                _mm_storel_epi64((__m128i *)(void *)(g->room.bytes + r * n + i), levels);
            }
        }
    }
}

/* `tiles`: not stored blocks, whose sums begin with those of their own activations. */
static void start_group(group *g, uint16_t format, bool tiles) {
    const int32_t offset = tiles ? level_offset(format) : 0;
    size_t others = g->rows;
    g->num_biased = 0;
    g->num_biases = (g->padded_k + 4 * POT4_RUN - 1) / (4 * POT4_RUN);
    for (size_t r = 0; r < g->rows; r++) {
        const int8_t *x = g->x + r * g->padded_k;
        if (tiles && format == LIL_POT4 && biases_of(x, g->padded_k, g->room.biases + r * g->num_biases)) {
            g->order[g->num_biased++] = (uint8_t)r;
            g->start[r] = 0;
        } else {
            g->order[--others] = (uint8_t)r;
            g->start[r] = offset != 0 ? offset_sum(x, g->padded_k, offset) : 0;
        }
    }
}

/* Add a chunk to the sums of all rows. */
static void multiply_rows(const group *g, const chunk *c, uint16_t format, int32_t sums[GROUP][TILE_N]) {
    product p = {.x = c->x, .stride = c->stride, .w = c->w, .tiles = c->tiles, .sums = sums[0],
                 .num_biases = g->num_biases};
    for (size_t i = 0, count; i < g->rows; i += count) {
        const bool biased = i < g->num_biased;
        const size_t left = (biased ? g->num_biased : g->rows) - i, limit = biased ? SMALL_BLOCK : BLOCK;
        count = left < limit ? left : limit;
        p.rows = g->order + i;
        p.bias = biased ? g->room.biases + c->first * STEP / (4 * POT4_RUN) : NULL;
        multiply(&p, format, count);
    }
}

/* Add the products of 16 outputs whose weights are in tiles. */
static void multiply_tiles(const lil_constant *codes, size_t block_row, group *g, chunk *c,
                           int32_t sums[GROUP][TILE_N]) {
    const size_t steps = g->padded_k / STEP;
    for (size_t s = 0; s < steps; s += CHUNK) {
        const size_t count = steps - s < CHUNK ? steps - s : CHUNK;
        prepare(c, codes, block_row, g, s, count, block_row > 0 && steps <= CHUNK);
        multiply_rows(g, c, codes->format, sums);
    }
}

/* The same of stored blocks. */
static void multiply_stored(const lil_constant *codes, size_t block_row, group *g, chunk *c,
                            int32_t sums[GROUP][TILE_N]) {
    const lil_blocks stored = lil_blocks_of(codes);
    const size_t width = lil_block_cols(codes->format), room = NUM_WORDS / width / g->rows;
    const size_t limit = room < CHUNK * STEP / width ? room : CHUNK * STEP / width;
    const int32_t offset = level_offset(codes->format);
    size_t i, end, count;
    lil_block_range(&stored, block_row, &i, &end);
    for (; i < end; i += count) {
        count = end - i < limit ? end - i : limit;
        prepare_stored(c, &stored, codes->format, g, i, count);
        for (size_t r = 0; r < g->rows && offset != 0; r++) {
            const int32_t start = offset_sum((const int8_t *)c->x + r * c->stride, c->stride, offset);
            lanes_i32_store(sums[r], lanes_i32_add(lanes_i32_load(sums[r]), lanes_i32_set(start)));
        }
        multiply_rows(g, c, codes->format, sums);
    }
}

/* Rows [r0, r0 + rows), at most what group_limit says. */
static void multiply_group(const lil_call *call, finish how, size_t r0, size_t rows) {
    const finish_target target = finish_target_of(call);
    const lil_constant *codes = &call->tensor[0];
    const size_t outputs = codes->rows, padded_k = call->in[0].cols;
    group g;
    chunk c;
    _Alignas(64) int32_t sums[GROUP][TILE_N];
    g.x = (const int8_t *)call->in[0].data + r0 * padded_k;
    g.rows = rows;
    g.padded_k = padded_k;
    start_group(&g, codes->format, codes->layout == LIL_TILES);
    for (size_t n0 = 0; n0 < outputs; n0 += TILE_N) {
        for (size_t r = 0; r < rows; r++) {
            lanes_i32_store(sums[r], lanes_i32_set(g.start[r]));
        }
        if (codes->layout == LIL_TILES) {
            multiply_tiles(codes, n0 / TILE_N, &g, &c, sums);
        } else {
            multiply_stored(codes, n0 / TILE_N, &g, &c, sums);
        }
        finish_tile(&target, how, sums[0], r0, rows, n0, outputs - n0 < TILE_N ? outputs - n0 : TILE_N);
    }
}

/* Rows whose widened activations of a chunk, or whose biases, have room; at least 1, as padded_k <= 65536. */
static size_t group_limit(uint16_t format, size_t padded_k) {
    const size_t k = padded_k < CHUNK * STEP ? padded_k : CHUNK * STEP;
    const size_t num_biases = (padded_k + 4 * POT4_RUN - 1) / (4 * POT4_RUN);
    const size_t limit = is_widened(format) ? NUM_WORDS / k : format == LIL_POT4 ? NUM_WORDS / 2 / num_biases : GROUP;
    return limit < GROUP ? limit : GROUP;
}

static void linear_any(const lil_call *call, const lil_part *part, finish how) {
    const size_t limit = group_limit(call->tensor[0].format, call->in[0].cols);
    const size_t rows = part->end - part->begin, groups = (rows + limit - 1) / limit;
    const size_t each = (rows + groups - 1) / groups;
    for (size_t r0 = part->begin; r0 < part->end; r0 += each) {
        multiply_group(call, how, r0, part->end - r0 < each ? part->end - r0 : each);
    }
}

static void linear(const lil_call *call, const lil_part *part) {
    linear_any(call, part, (finish)call->a[0]);
}

static void linear_levels(const lil_call *call, const lil_part *part) {
    linear_any(call, part, (finish)(call->a[0] | FINISH_LEVELS));
}

static void linear_add(const lil_call *call, const lil_part *part) {
    linear_any(call, part, FINISH_ADD);
}

#endif
