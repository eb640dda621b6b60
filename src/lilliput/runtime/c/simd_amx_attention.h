/* The integer products of table_attention by tiles: 16 queries by 16 keys, and by 16 dims of the values. Internal;
 * included once by simd_amx.c. */
#ifndef LIL_SIMD_AMX_ATTENTION_H
#define LIL_SIMD_AMX_ATTENTION_H

#include "simd_table_attention.h"

enum { FEW_QUERIES = 4 }; /* for so many a tile is a waste */

/* Inputs of a query that one tile instruction multiplies: the largest of 64, 48, 32 and 16 that divides `width`. */
static size_t dims_at_once(size_t width) {
    size_t dims = 64;
    while (width % dims != 0) {
        dims -= 16;
    }
    return dims;
}

/* Registers 0 to 3: products; 4: queries [16][dims], 5: keys [dims / 4][16 keys][4]; 6: weights [16][64 tokens],
 * 7: values [16][16 dims][4 tokens]. */
static void configure_attention(size_t width) {
    const size_t dims = dims_at_once(width);
    tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = (uint16_t)(i == 4 ? dims : 64);
        config.rows[i] = (uint8_t)(i == 5 ? dims / 4 : 16);
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* GCC 12 thinks that only 8 bytes of it are read */
    _tile_loadconfig(&config);
}

/* Products of 16 queries with `tiles` (1..4, a literal) times 16 keys, as int32 where the scores will be. Each tile has
 * sums of its own, because a product takes long. */
LIL_INLINE void multiply_key_tiles(const head *h, size_t dims, const int8_t *keys, float *sums_at, size_t tiles) {
    const size_t next = 16 * h->width; /* bytes of 16 keys */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t d = 0; d < h->width; d += dims, keys += 16 * dims) {
        _tile_loadd(4, h->queries + d, h->width);
        _tile_loadd(5, keys, 64);
        _tile_dpbssd(0, 4, 5);
        if (tiles > 1) {
            _tile_loadd(5, keys + next, 64);
            _tile_dpbssd(1, 4, 5);
        }
        if (tiles > 2) {
            _tile_loadd(5, keys + 2 * next, 64);
            _tile_dpbssd(2, 4, 5);
        }
        if (tiles > 3) {
            _tile_loadd(5, keys + 3 * next, 64);
            _tile_dpbssd(3, 4, 5);
        }
    }
    _tile_stored(0, sums_at, 64);
    if (tiles > 1) {
        _tile_stored(1, sums_at + 256, 64);
    }
    if (tiles > 2) {
        _tile_stored(2, sums_at + 512, 64);
    }
    if (tiles > 3) {
        _tile_stored(3, sums_at + 768, 64);
    }
}

static void multiply_keys(const head *h, size_t padded_tokens) {
    const size_t dims = dims_at_once(h->width);
    size_t j = 0;
    __asm__ volatile("" ::: "memory"); /* tile loads do not say to the compiler that they read memory */
    for (; j + 64 <= padded_tokens; j += 64) {
        multiply_key_tiles(h, dims, h->keys + j * h->width, h->scores + 16 * j, 4);
    }
    switch ((padded_tokens - j) / 16) {
    case 1: multiply_key_tiles(h, dims, h->keys + j * h->width, h->scores + 16 * j, 1); break;
    case 2: multiply_key_tiles(h, dims, h->keys + j * h->width, h->scores + 16 * j, 2); break;
    case 3: multiply_key_tiles(h, dims, h->keys + j * h->width, h->scores + 16 * j, 3); break;
    }
}

/* The products of 16 queries with 16 keys to scores; `most` are the largest of each query so far, lane by lane. `part`,
 * a literal: there are only `left` keys. */
LIL_INLINE void scale_products(float *scores, const queries *q, lanes key_scales, bool part, size_t left,
                               lanes most[ROWS]) {
    LIL_UNROLL
    for (size_t r = 0; r < ROWS; r++, scores += 16) {
        const lanes dot = lanes_from_i32(lanes_i32_load((const int32_t *)(const void *)scores));
        lanes s = lanes_mul(lanes_mul(dot, lanes_set(q->scale[r])), key_scales);
        if (part) {
            s = lanes_first(s, lanes_set(-INFINITY), left);
        }
        lanes_store(scores, s);
        most[r] = lanes_max(s, most[r]);
    }
}

/* All 16 rows are computed: those past the last query come from memory of the scratch that nobody has written, and
 * nobody looks at them. */
static void score_tiles(const head *h, queries *q) {
    if (q->count <= FEW_QUERIES) {
        score_all(h, q);
        return;
    }
    lanes most[ROWS];
    LIL_UNROLL
    for (size_t r = 0; r < ROWS; r++) {
        most[r] = lanes_set(-INFINITY);
    }
    multiply_keys(h, q->padded_tokens);
    size_t j = 0;
    for (; j + 16 <= h->num_tokens; j += 16) {
        scale_products(h->scores + 16 * j, q, lanes_load(h->key_scales + j), false, 16, most);
    }
    if (j < h->num_tokens) {
        scale_products(h->scores + 16 * j, q, lanes_load(h->key_scales + j), true, h->num_tokens - j, most);
    }
    lanes_store(q->largest, lanes_largest16(most));
}

/* Outputs of 16 dims, or `two`, a literal, of 32 dims from d on. */
LIL_INLINE void mix_tiles_at(const head *h, const queries *q, const float scale[ROWS], size_t d, bool two, float *y) {
    const size_t slice = 64 * ((h->num_tokens + 3) / 4);
    const int8_t *values = h->values + d / 16 * slice, *weights = h->probabilities;
    _Alignas(64) int32_t mixed[2][16][16];
    _tile_zero(0);
    _tile_zero(1);
    __asm__ volatile("" ::: "memory");
    for (size_t j = 0; j < q->row; j += 64, values += 1024) { /* weights behind the last token are 0 */
        _tile_loadd(6, weights + j, q->row);
        _tile_loadd(7, values, 64);
        _tile_dpbssd(0, 6, 7);
        if (two) {
            _tile_loadd(7, values + slice, 64);
            _tile_dpbssd(1, 6, 7);
        }
    }
    _tile_stored(0, mixed[0], 64);
    _tile_stored(1, mixed[1], 64);
    for (size_t r = 0; r < q->count; r++, y += h->out_stride) {
        store_output(h, lanes_i32_load(mixed[0][r]), scale[r], d, y);
        if (two) {
            store_output(h, lanes_i32_load(mixed[1][r]), scale[r], d + 16, y);
        }
    }
}

static void mix_tiles(const head *h, const queries *q, const float scale[ROWS], float *y) {
    if (q->count <= FEW_QUERIES) {
        mix_queries(h, q, scale, y);
        return;
    }
    size_t d = 0;
    for (; d + 32 <= h->width; d += 32) {
        mix_tiles_at(h, q, scale, d, true, y);
    }
    if (d < h->width) {
        mix_tiles_at(h, q, scale, d, false, y);
    }
}

static void table_attention(const lil_call *call, const lil_part *part) {
    static const products tile_products = {score_tiles, mix_tiles};
    configure_attention((call->a[1] + 15) / 16 * 16);
    table_attention_with(call, part, &tile_products);
    _tile_release();
}

#endif
