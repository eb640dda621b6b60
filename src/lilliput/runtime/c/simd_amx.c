/* The matrix product of AMX: tiles of up to 16 rows x 64 bytes. Everything else is AVX-512's.
 *
 * A tile register of weights is 16 rows of 64 bytes, 4 inputs x 16 outputs each: 16 tiles of the file one after
 * another. Codes of 8 bits are loaded where they lie in the file; others are decoded once for all rows. */
#include "lil_isa.h"

#if LIL_HAS_AMX
#if defined(__clang__)
#pragma clang attribute push(                                                                                         \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,amx-tile,amx-int8"))),            \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,amx-tile,amx-int8")
#endif

#include "simd_lanes_avx512.h"
#include "simd_decode_avx512.h"
#include "simd_finish.h"

enum {
    STEP = 64,       /* inputs that one tile instruction multiplies */
    CHUNK = 1024,    /* inputs that are decoded at a time */
    TILE_ROWS = 16,
};

/* What the tile registers hold: 0 to 3 sums, 4 and 5 activations, 6 and 7 weights. */
typedef struct tile_config {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

static void configure(size_t rows) {
    tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = (uint8_t)(i < 6 ? rows : TILE_ROWS);
    }
    _tile_loadconfig(&config);
}

/* The weights of 16 outputs: where they are, for one chunk of inputs. */
typedef struct weights {
    const uint8_t *codes;      /* the file's, from the first input on */
    const uint8_t *steps;      /* whole steps of the chunk, decoded or in the file */
    uint8_t *decoded;          /* 16 * CHUNK bytes */
    const uint8_t *tail;       /* the last step, where it is not whole: zeros follow */
} weights;

/* One product: rows of activations by weights of one or two times 16 outputs. */
typedef struct product {
    const int8_t *x;
    size_t padded_k;
    size_t tail_k;             /* inputs of the last step where it is not whole, else 0 */
    uint16_t format;
    weights w[2];
    int8_t (*x_tail)[TILE_ROWS][STEP]; /* [2]: the last step of two times 16 rows: zeros follow */
} product;

/* Make inputs [k0, k0 + n) of 16 outputs ready; n is CHUNK or what is left. */
static void prepare_weights(weights *w, uint16_t format, size_t k0, size_t n) {
    const size_t whole = n / STEP * STEP;
    if (format == LIL_INT8) {
        const uint8_t *codes = w->codes + TILE_ROWS * k0;
        w->steps = codes;
        if (whole < n) {
            memcpy(w->decoded, codes + TILE_ROWS * whole, TILE_ROWS * (n - whole));
            memset(w->decoded + TILE_ROWS * (n - whole), 0, TILE_ROWS * (STEP - (n - whole)));
            w->tail = w->decoded;
        }
        return;
    }
    decode_by_table(w->codes, table_4bit(format), k0, n, w->decoded);
    memset(w->decoded + TILE_ROWS * n, 0, TILE_ROWS * ((STEP - n % STEP) % STEP));
    w->steps = w->decoded;
    w->tail = w->decoded + TILE_ROWS * whole;
}

/* Add one step's products to the sums. The counts are literals at each call. */
LIL_INLINE void multiply(const int8_t *a0, const int8_t *a1, size_t stride, const uint8_t *b0, const uint8_t *b1,
                         int num_a, int num_b) {
    _tile_loadd(6, b0, 64);
    _tile_loadd(4, a0, stride);
    _tile_dpbssd(0, 4, 6);
    if (num_b == 2) {
        _tile_loadd(7, b1, 64);
        _tile_dpbssd(1, 4, 7);
    }
    if (num_a == 2) {
        _tile_loadd(5, a1, stride);
        _tile_dpbssd(2, 5, 6);
        if (num_b == 2) {
            _tile_dpbssd(3, 5, 7);
        }
    }
}

/* Add the chunk of inputs [k0, k0 + n) for the tiles of rows at a0 and a1. */
LIL_INLINE void multiply_chunk(const product *p, const size_t row[2], size_t k0, size_t n, int num_a, int num_b) {
    const int8_t *a0 = p->x + row[0] * p->padded_k + k0, *a1 = p->x + row[1] * p->padded_k + k0;
    const size_t whole = n / STEP * STEP;
    __asm__ volatile("" ::: "memory"); /* the loads of tiles do not say to the compiler that they read memory */
    for (size_t k = 0; k < whole; k += STEP) {
        multiply(a0 + k, a1 + k, p->padded_k, p->w[0].steps + TILE_ROWS * k, p->w[1].steps + TILE_ROWS * k, num_a,
                 num_b);
    }
    if (whole < n) {
        multiply(p->x_tail[0][0], p->x_tail[1][0], STEP, p->w[0].tail, p->w[1].tail, num_a, num_b);
    }
}

/* The last step of `rows` rows from row[i] on, where it is not whole. */
static void prepare_rows(const product *p, const size_t row[2], size_t rows, int num_a) {
    for (int i = 0; i < num_a && p->tail_k > 0; i++) {
        const int8_t *x = p->x + row[i] * p->padded_k + p->padded_k - p->tail_k;
        for (size_t r = 0; r < rows; r++, x += p->padded_k) {
            memcpy(p->x_tail[i][r], x, p->tail_k); /* what follows is 0 from the start */
        }
    }
}

LIL_INLINE void multiply_any(const product *p, const size_t row[2], size_t k0, size_t n, int num_a, int num_b) {
    if (num_a == 2) {
        if (num_b == 2) {
            multiply_chunk(p, row, k0, n, 2, 2);
        } else {
            multiply_chunk(p, row, k0, n, 2, 1);
        }
    } else if (num_b == 2) {
        multiply_chunk(p, row, k0, n, 1, 2);
    } else {
        multiply_chunk(p, row, k0, n, 1, 1);
    }
}

static void linear(const lil_call *call, const lil_part *part, finish how) {
    const finish_target target = finish_target_of(call);
    const size_t outputs = call->tensor[0].rows, padded_k = call->in[0].cols, rows = part->end - part->begin;
    const size_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, tile_rows = (rows + tiles - 1) / tiles;
    const uint16_t format = call->tensor[0].format;
    const size_t tile_row_bytes = TILE_ROWS * padded_k / (format == LIL_INT8 ? 1 : 2);
    _Alignas(64) uint8_t decoded[2][TILE_ROWS * CHUNK];
    _Alignas(64) int8_t x_tail[2][TILE_ROWS][STEP] = {{{0}}};
    _Alignas(64) int32_t sums[4][TILE_ROWS * 16];
    product p = {.x = call->in[0].data, .padded_k = padded_k, .tail_k = padded_k % STEP, .format = format,
                 .x_tail = x_tail};
    configure(tile_rows);
    for (size_t n0 = 0; n0 < outputs; n0 += 32) {
        const int num_b = outputs - n0 > 16 ? 2 : 1;
        size_t prepared = SIZE_MAX;
        for (int j = 0; j < num_b; j++) {
            p.w[j] = (weights){.codes = call->tensor[0].data + (n0 / 16 + (size_t)j) * tile_row_bytes,
                               .decoded = decoded[j]};
        }
        for (size_t t = 0; t < tiles; t += 2) {
            /* Tiles of rows are of one size: the last ones may overlap, and give the same outputs twice. */
            const int num_a = tiles - t > 1 ? 2 : 1;
            size_t row[2];
            for (size_t i = 0; i < 2; i++) {
                const size_t first = (t + i) * tile_rows;
                row[i] = part->begin + (first + tile_rows <= rows ? first : rows - tile_rows);
            }
            prepare_rows(&p, row, tile_rows, num_a);
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (size_t k0 = 0; k0 < padded_k; k0 += CHUNK) {
                const size_t n = padded_k - k0 < CHUNK ? padded_k - k0 : CHUNK;
                for (int j = 0; j < num_b && prepared != k0; j++) {
                    prepare_weights(&p.w[j], format, k0, n);
                }
                prepared = k0;
                multiply_any(&p, row, k0, n, num_a, num_b);
            }
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            _tile_stored(2, sums[2], 64);
            _tile_stored(3, sums[3], 64);
            for (int i = 0; i < num_a; i++) {
                for (int j = 0; j < num_b; j++) {
                    const size_t n = n0 + 16 * (size_t)j, count = outputs - n < 16 ? outputs - n : 16;
                    finish_tile(&target, how, sums[2 * i + j], row[i], tile_rows, n, count);
                }
            }
        }
    }
    _tile_release();
}

static bool known(const lil_constant *codes) {
    return codes->format <= LIL_POT4;
}

enum { FEW = 4 }; /* for as many rows or fewer, a tile instruction is a waste */

static void linear_activated(const lil_call *call, const lil_part *part) {
    static const finish activations[] = {FINISH_NONE, FINISH_RELU, FINISH_GELU};
    if (!known(&call->tensor[0]) || part->end - part->begin <= FEW) {
        lil_kernels_avx512[LIL_LINEAR](call, part);
        return;
    }
    linear(call, part, activations[call->a[0]]);
}

static void linear_add(const lil_call *call, const lil_part *part) {
    if (!known(&call->tensor[0]) || part->end - part->begin <= FEW) {
        lil_kernels_avx512[LIL_LINEAR_ADD](call, part);
        return;
    }
    linear(call, part, FINISH_ADD);
}

const lil_kernel_table lil_kernels_amx = {
    [LIL_LINEAR] = linear_activated,
    [LIL_LINEAR_ADD] = linear_add,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
