/* The matrix product of AMX: tiles of up to 16 rows x 64 bytes. Everything else is AVX-512's.
 *
 * A tile of weights is 16 rows of 64 bytes, 4 inputs x 16 outputs each: 16 tiles of the file one after another. Codes
 * of 8 bits are loaded where they lie in the file, others decoded, once for up to 80 rows of activations. While the tile
 * unit makes the sums of 16 outputs, the vector units finish those of the 16 before. */
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
    STEP = 64,      /* inputs that one tile instruction multiplies */
    TILE_ROWS = 16, /* at most */
    MAX_TILES = 5,  /* of sums: registers 0 to 4; 5 and 6 hold activations, 7 weights */
};

typedef struct tile_config {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Sums and activations of `rows` rows. */
static void configure(size_t rows) {
    tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = (uint8_t)(i < 7 ? rows : TILE_ROWS);
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* GCC 12 thinks that only 8 bytes of it are read */
    _tile_loadconfig(&config);
}

/* Up to 80 rows of activations, as tiles of equal size: the last one may overlap the one before, and give the same
 * outputs twice. */
typedef struct row_group {
    size_t tiles;
    size_t tile_rows;
    size_t row[MAX_TILES]; /* first row of each tile */
    const int8_t *x;
    size_t padded_k;
    int8_t (*tail)[TILE_ROWS][STEP]; /* inputs of the last step where it is not whole, and zeros: [MAX_TILES] */
} row_group;

static void begin_group(row_group *g, size_t begin, size_t rows) {
    const size_t whole = g->padded_k / STEP * STEP;
    const __mmask64 inside = ((__mmask64)1 << (g->padded_k - whole)) - 1;
    for (size_t t = 0; t < g->tiles; t++) {
        const size_t first = t * g->tile_rows;
        g->row[t] = begin + (first + g->tile_rows <= rows ? first : rows - g->tile_rows);
        const int8_t *x = g->x + g->row[t] * g->padded_k + whole;
        for (size_t r = 0; r < g->tile_rows && inside != 0; r++, x += g->padded_k) {
            _mm512_store_si512(g->tail[t][r], _mm512_maskz_loadu_epi8(inside, x));
        }
    }
}

/* The weights' tiles in the order in which they are multiplied: step by step along the inputs, 16 outputs after 16
 * outputs. A tile is decoded AHEAD of its use, because a tile load cannot take what a store has not yet brought to the
 * cache, and stores wait for the instructions before them. */
enum { AHEAD = 2, RING = 4 };

typedef struct weight_stream {
    const uint8_t *codes; /* layout `tiles`: of the next step */
    lil_blocks blocks;    /* layout `blocks` */
    size_t stored, end;   /*   numbers of the row's next stored block and of the first behind the row */
    bool is_sparse;
    size_t padded_k;
    decoder decoder;
    size_t step_bytes;    /* of codes */
    size_t steps;         /* in all: for all outputs */
    size_t next;          /* to be decoded */
    size_t row;           /* 16 outputs number.. */
    size_t k;             /* its first input */
    const uint8_t *tile[RING]; /* NULL: all of it is zero */
    _Alignas(64) uint8_t levels[RING][TILE_ROWS * STEP];
} weight_stream;

/* The stored blocks of inputs [k, k + n), n <= STEP; NULL where there is none. */
static const uint8_t *decode_stored(weight_stream *w, size_t n, uint8_t *levels) {
    const size_t width = lil_block_cols(w->decoder.format), block_bytes = lil_block_bytes(w->decoder.format);
    bool any = false;
    if (w->k == 0) {
        lil_block_range(&w->blocks, w->row, &w->stored, &w->end);
    }
    for (; w->stored < w->end; w->stored++) {
        const size_t first = lil_u16_at(w->blocks.columns, w->stored) * width - w->k; /* before k: wraps to huge */
        if (first >= n) {
            break;
        }
        if (!any) {
            memset(levels, 0, TILE_ROWS * STEP);
            any = true;
        }
        for (size_t i = first; i < first + width && i < n; i += 8) {
            __m512i tile[2];
            decode_pair(&w->decoder, w->blocks.codes + w->stored * block_bytes, (i - first) / 8, tile);
            _mm512_store_si512(levels + TILE_ROWS * i, tile[0]);
            _mm512_store_si512(levels + TILE_ROWS * i + 64, tile[1]);
        }
    }
    return any ? levels : NULL;
}

/* The tile of inputs [k, k + n) in the layout `tiles`; past n it is 0. */
LIL_INLINE const uint8_t *decode_dense(weight_stream *w, size_t n, uint8_t *levels) {
    const uint8_t *codes = w->codes;
    if (n == STEP) {
        w->codes += w->step_bytes;
        if (w->decoder.format == LIL_INT8) {
            return codes; /* where it lies in the file */
        }
        decode_tiles_64(&w->decoder, codes, levels);
        return levels;
    }
    w->codes += tiles_bytes(w->decoder.format, n);
    decode_tiles(&w->decoder, codes, n, levels);
    memset(levels + TILE_ROWS * n, 0, TILE_ROWS * (STEP - n));
    return levels;
}

/* Make the next tile ready. */
LIL_INLINE void decode_next(weight_stream *w) {
    if (w->next == w->steps) {
        return;
    }
    const size_t i = w->next++ % RING, n = w->padded_k - w->k < STEP ? w->padded_k - w->k : STEP;
    w->tile[i] = w->is_sparse ? decode_stored(w, n, w->levels[i]) : decode_dense(w, n, w->levels[i]);
    w->k += n;
    if (w->k == w->padded_k) {
        w->k = 0;
        w->row++;
    }
}

static void begin_stream(weight_stream *w, const lil_constant *codes, size_t padded_k) {
    w->is_sparse = codes->layout == LIL_BLOCKS;
    if (w->is_sparse) {
        w->blocks = lil_blocks_of(codes);
    }
    w->codes = codes->data;
    w->padded_k = padded_k;
    w->decoder = decoder_of(codes->format, false);
    w->step_bytes = tiles_bytes(codes->format, STEP);
    w->steps = (codes->rows + 15) / 16 * ((padded_k + STEP - 1) / STEP);
    w->next = w->row = w->k = 0;
    for (int i = 0; i < AHEAD; i++) {
        decode_next(w);
    }
}

/* Add one step's products to the sums: tile t of activations starts at a[t]. */
LIL_INLINE void multiply(const int8_t *const a[MAX_TILES], size_t k, size_t stride, const uint8_t *b, size_t tiles) {
    _tile_loadd(7, b, 64);
    _tile_loadd(5, a[0] + k, stride);
    _tile_dpbssd(0, 5, 7);
    if (tiles > 1) {
        _tile_loadd(6, a[1] + k, stride);
        _tile_dpbssd(1, 6, 7);
    }
    if (tiles > 2) {
        _tile_loadd(5, a[2] + k, stride);
        _tile_dpbssd(2, 5, 7);
    }
    if (tiles > 3) {
        _tile_loadd(6, a[3] + k, stride);
        _tile_dpbssd(3, 6, 7);
    }
    if (tiles > 4) {
        _tile_loadd(5, a[4] + k, stride);
        _tile_dpbssd(4, 5, 7);
    }
}

/* Sums of a group's rows for 16 outputs, and how many of the rows have been finished. */
typedef struct sums {
    _Alignas(64) int32_t row[MAX_TILES * TILE_ROWS][16];
    size_t n;        /* first output */
    size_t finished;
} sums;

/* The finishing of the sums of 16 outputs, in portions: between the steps of the next 16, so that the vector units have
 * work while the tile unit has. */
typedef struct finisher {
    finish_target target; /* begins with the group's first row; levels go to `staged` */
    finish how;
    size_t begin;         /* the group's first row */
    size_t rows;
    size_t rows_a_step;
    sums *sums;           /* NULL: nothing to do */
    int8_t *levels;       /* of the group's first row */
    size_t padded_outputs;
    int8_t (*staged)[64];
} finisher;

/* Levels are made 16 outputs at a time, which would be a quarter of a cache line in each of many rows. They are
 * collected until lines are whole. */
static void store_staged(const finisher *f, size_t n, size_t row, size_t until) {
    const size_t first = n & ~(size_t)63, count = f->padded_outputs - first < 64 ? f->padded_outputs - first : 64;
    if (n % 64 == 48 || n + 16 >= f->target.outputs) {
        for (; row < until; row++) {
            int8_t *to = f->levels + row * f->padded_outputs + first;
            if (count == 64) {
                _mm512_storeu_si512(to, _mm512_load_si512(f->staged[row]));
            } else {
                memcpy(to, f->staged[row], count);
            }
        }
    }
}

static void finish_until(const finisher *f, size_t until) {
    sums *s = f->sums;
    until = until < f->rows ? until : f->rows;
    if (s != NULL && s->finished < until) {
        const size_t left = f->target.outputs - s->n;
        finish_tile(&f->target, f->how, s->row[s->finished], s->finished, until - s->finished, s->n,
                    left < 16 ? left : 16);
        if (f->how & FINISH_LEVELS) {
            store_staged(f, s->n, s->finished, until);
        }
        s->finished = until;
    }
}

/* The sums of all the group's rows for the stream's next 16 outputs, its tiles from number `step` on. */
static void multiply_all(const row_group *g, weight_stream *w, size_t step, sums *out, const finisher *f) {
    const size_t tiles = g->tiles;
    const int8_t *rows[MAX_TILES], *tails[MAX_TILES];
    const size_t whole = g->padded_k / STEP * STEP, steps = (g->padded_k + STEP - 1) / STEP;
    for (size_t t = 0; t < tiles; t++) {
        rows[t] = g->x + g->row[t] * g->padded_k;
        tails[t] = g->tail[t][0];
    }
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    for (size_t i = 0; i < steps; i++, step++) {
        decode_next(w);
        __asm__ volatile("" ::: "memory"); /* tile loads do not say to the compiler that they read memory */
        if (w->tile[step % RING] == NULL) {
            /* nothing to add */
        } else if (i * STEP < whole) {
            multiply(rows, i * STEP, g->padded_k, w->tile[step % RING], tiles);
        } else {
            multiply(tails, 0, STEP, w->tile[step % RING], tiles);
        }
        finish_until(f, f->rows_a_step * (i + 1));
    }
    int32_t(*sum)[16] = out->row;
    _tile_stored(0, sum[g->row[0] - f->begin], 64);
    if (tiles > 1) {
        _tile_stored(1, sum[g->row[1] - f->begin], 64);
    }
    if (tiles > 2) {
        _tile_stored(2, sum[g->row[2] - f->begin], 64);
    }
    if (tiles > 3) {
        _tile_stored(3, sum[g->row[3] - f->begin], 64);
    }
    if (tiles > 4) {
        _tile_stored(4, sum[g->row[4] - f->begin], 64);
    }
}

static void linear_group(const lil_call *call, finish how, const row_group *g, size_t begin, size_t rows) {
    _Alignas(64) int8_t staged[MAX_TILES * TILE_ROWS][64];
    sums both[2];
    weight_stream w;
    begin_stream(&w, &call->tensor[0], g->padded_k);
    const size_t tiles_n = (call->tensor[0].rows + 15) / 16, steps = w.steps / tiles_n;
    finisher f = {
        .target = finish_target_of(call),
        .how = how,
        .begin = begin,
        .rows = rows,
        .rows_a_step = (rows + steps - 1) / steps,
        .padded_outputs = call->out[0].cols,
        .staged = staged,
    };
    f.target.row_scales += begin * f.target.row_step;
    if (how & FINISH_LEVELS) {
        f.levels = f.target.levels + begin * f.target.stride;
        f.target.levels = staged[0];
        f.target.stride = sizeof staged[0];
        f.target.column_mask = sizeof staged[0] - 1;
    } else {
        f.target.y += begin * f.target.stride;
        f.target.residual = how == FINISH_ADD ? f.target.residual + begin * f.target.stride : NULL;
    }
    for (size_t n = 0; n < tiles_n; n++) {
        sums *now = &both[n % 2];
        now->n = 16 * n;
        now->finished = 0;
        multiply_all(g, &w, n * steps, now, &f);
        f.sums = now;
    }
    finish_until(&f, rows);
}

static void linear(const lil_call *call, const lil_part *part, finish how) {
    const size_t total = part->end - part->begin, most = MAX_TILES * TILE_ROWS, groups = (total + most - 1) / most;
    _Alignas(64) int8_t tail[MAX_TILES][TILE_ROWS][STEP];
    row_group g = {.x = call->in[0].data, .padded_k = call->in[0].cols, .tail = tail};
    size_t configured = 0;
    for (size_t i = 0; i < groups; i++) {
        const size_t begin = part->begin + total * i / groups, end = part->begin + total * (i + 1) / groups;
        g.tiles = (end - begin + TILE_ROWS - 1) / TILE_ROWS;
        g.tile_rows = (end - begin + g.tiles - 1) / g.tiles;
        begin_group(&g, begin, end - begin);
        if (g.tile_rows != configured) {
            configured = g.tile_rows;
            configure(configured);
        }
        linear_group(call, how, &g, begin, end - begin);
    }
    _tile_release();
}

/* For a few rows a tile instruction is a waste, and where an eighth of the blocks is stored or less, VNNI's loop, which
 * knows only these, is faster. */
static bool suits(const lil_call *call, const lil_part *part) {
    enum { FEW = 4, SPARSE = 8 };
    const lil_constant *codes = &call->tensor[0];
    if (part->end - part->begin <= FEW) {
        return false;
    }
    return codes->layout == LIL_TILES ||
           (uint64_t)lil_blocks_of(codes).count * lil_block_bytes(codes->format) * SPARSE >
               (codes->rows + 15) / 16 * tiles_bytes(codes->format, codes->cols);
}

#include "simd_amx_attention.h"

static void linear_activated(const lil_call *call, const lil_part *part) {
    if (!suits(call, part)) {
        lil_kernels_avx512[LIL_LINEAR](call, part);
        return;
    }
    linear(call, part, (finish)call->a[0]);
}

static void linear_levels(const lil_call *call, const lil_part *part) {
    if (!suits(call, part)) {
        lil_kernels_avx512[LIL_LINEAR_LEVELS](call, part);
        return;
    }
    linear(call, part, (finish)(call->a[0] | FINISH_LEVELS));
}

static void linear_add(const lil_call *call, const lil_part *part) {
    if (!suits(call, part)) {
        lil_kernels_avx512[LIL_LINEAR_ADD](call, part);
        return;
    }
    linear(call, part, FINISH_ADD);
}

const lil_kernel_table lil_kernels_amx = {
    [LIL_LINEAR] = linear_activated,
    [LIL_LINEAR_ADD] = linear_add,
    [LIL_LINEAR_LEVELS] = linear_levels,
    [LIL_TABLE_ATTENTION] = table_attention,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
