/* What lil_run hands to a kernel, and the kernels: a scalar version of each op, in the file of its family.
 * Internal.
 *
 * What lil_open and lil_run have proved before a kernel is called, and a kernel therefore relies on:
 * - shapes, dtypes, formats, layouts and attributes are those of the kind (docs/format.md, "Ops"), sizes fit size_t;
 * - no output overlaps an input, the other output or the file: `restrict` is true between them;
 * - outputs that are not the caller's lie at multiples of LIL_ALIGNMENT, the caller's at a multiple of 4.
 * - what looks at an example's rows together (attention, add_positions, select_row, mean_rows, neighbors) gets the rows of
 *   one example; all others may get those of several sequences, one behind the other.
 * NaN and infinity may come in: no kernel converts a float to an integer before it has clamped it. */
#ifndef LIL_KERNELS_H
#define LIL_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lil_format.h"

/* Before a loop of few, constant steps: unroll it, so that what it indexes stays in registers. */
#if defined(__clang__)
#define LIL_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define LIL_UNROLL _Pragma("GCC unroll 16")
#else
#define LIL_UNROLL
#endif

/* Ask for memory that will be written; at any address. */
#if defined(__GNUC__)
#define LIL_PREFETCH_WRITE(p) __builtin_prefetch((p), 1, 3)
#else
#define LIL_PREFETCH_WRITE(p) ((void)(p))
#endif

typedef struct lil_output { /* a buffer, row-major */
    void *data;
    size_t rows;
    size_t cols;
} lil_output;

typedef struct lil_input {
    const void *data;
    size_t rows;
    size_t cols;
} lil_input;

typedef struct lil_constant { /* a tensor: bytes in the file, at any alignment */
    const uint8_t *data;
    size_t rows;
    size_t cols;
    uint16_t format;
    uint16_t layout;
    size_t available; /* bytes from `data` to the end of the file */
} lil_constant;

typedef struct lil_call {
    lil_input in[LIL_NUM_INPUTS];
    lil_output out[LIL_NUM_OUTPUTS];
    lil_constant tensor[LIL_NUM_TENSORS];
    uint32_t a[LIL_NUM_ATTRIBUTES];
} lil_call;

/* The part of an op that one thread does: rows [begin, end) of its first output, heads [begin, end) of attention, or
 * all of it (begin 0) where an op is not divided (lil_run.c). `scratch` is the thread's own, as many bytes as the op's
 * scratch buffer has; NULL for kinds without one. Parts write different bytes, and none reads what another writes. */
typedef struct lil_part {
    size_t begin;
    size_t end;
    uint8_t *scratch;
} lil_part;

typedef void (*lil_kernel)(const lil_call *call, const lil_part *part);

/* The kernels of one instruction set, by kind; NULL: the scalar one serves. */
typedef lil_kernel lil_kernel_table[LIL_NUM_KINDS];

/* u8 [R, C], scale f32 [1, C], shift f32 [1, C] -> f32 [R, C]: x * scale + shift. */
void lil_op_normalize(const lil_call *call, const lil_part *part);

/* f32 [h * w, C] -> f32 [oh * ow, k * k * C]; a: height, width, kernel, stride, padding. */
void lil_op_unfold(const lil_call *call, const lil_part *part);

/* f32 [R, K] -> i8 [R, P8(K)] levels, padding 0, and f32 [R, 1] scales >= 0; a: bits of a level (lil_largest_level). */
void lil_op_quantize(const lil_call *call, const lil_part *part);

/* i8 [R, P8(K)], f32 [R, 1] or the levels again (then all scales are 1), codes [N, K] in tiles or blocks, scale bf16
 * [1, N], bias bf16 [1, N] -> f32 [R, N]. K <= 65536, so |sum| <= 65536 * 127 * 127 < 2^31. a of linear: activation, 0 to 4
 * (finish, below); linear_add: in[2] is the residual f32 [R, N]. */
void lil_op_linear(const lil_call *call, const lil_part *part);
void lil_op_linear_add(const lil_call *call, const lil_part *part);

/* As linear, with activations 0 to 3, and then levels: i8 [R, P8(N)], padding 0, of the outputs times a multiplier
 * each, bf16 [1, N]. Both kinds of gelu are coarse here. a: activation, bits of a level. */
void lil_op_linear_levels(const lil_call *call, const lil_part *part);

/* What happens to a product's scaled sums: the activations of linear, by their numbers in the file, or linear_add's
 * residual; and whether levels are made of it. */
typedef enum finish {
    FINISH_NONE = 0,
    FINISH_RELU,
    FINISH_GELU,
    FINISH_GELU_TANH,
    FINISH_TANH,
    FINISH_ADD,
    FINISH_LEVELS = 8 /* may be added to an activation */
} finish;

/* f32 [R, D], gamma bf16 [1, D], beta bf16 [1, D] -> f32 [R, D]; a: eps (f32 bits, > 0). */
void lil_op_layer_norm(const lil_call *call, const lil_part *part);

/* f32 [T, 3 * H * dh] -> f32 [Q, H * dh], and scratch of lil_attention_layout's bytes; a: H, dh, logit scale (f32
 * bits), number of queries. Q = out[0].rows is 1..T: only the first Q tokens ask, all T are keys and values. T and
 * dh <= 65536, so no int32 sum overflows. */
void lil_op_attention(const lil_call *call, const lil_part *part);

/* The same with weights from a table; scratch of lil_table_layout's bytes. */
void lil_op_table_attention(const lil_call *call, const lil_part *part);

/* f32 [R, D], codes [1, D] in rows, scale bf16 [1, 1] -> f32 [R + 1, D]. */
void lil_op_prepend_token(const lil_call *call, const lil_part *part);

/* f32 [T, D], codes [T, D] in rows, scale bf16 [1, T] -> f32 [T, D]. */
void lil_op_add_positions(const lil_call *call, const lil_part *part);

/* f32 [T, D] -> f32 [1, D]; a: row < T. */
void lil_op_select_row(const lil_call *call, const lil_part *part);

/* f32 [T, D] -> f32 [1, D]. */
void lil_op_mean_rows(const lil_call *call, const lil_part *part);

/* u32 [T, 1], codes [V, D] in rows, scale bf16 [1, V] -> f32 [T, D]. The ids are below V: lil_run_sequences has looked. */
void lil_op_embed_tokens(const lil_call *call, const lil_part *part);

/* f32 [R, D] -> f32 [R, D], each row divided by its length, at least 1e-12. */
void lil_op_normalize_rows(const lil_call *call, const lil_part *part);

/* f32 [R, D], gamma bf16 [1, D], beta bf16 [1, D] -> f32 [R, D]: x * gamma + beta. */
void lil_op_scale_shift(const lil_call *call, const lil_part *part);

/* f32 [T, D] -> f32 [T, 3 * D]: the token after, itself, the one before; outside is +0. */
void lil_op_neighbors(const lil_call *call, const lil_part *part);

/* f32 [R, A], f32 [R, B] -> f32 [R, A + B]. */
void lil_op_concat(const lil_call *call, const lil_part *part);

/* The parts of codes in the layout `blocks`, stored one block row (16 outputs) after another. */
typedef struct lil_blocks {
    const uint8_t *starts;  /* u32 [P16(rows) / 16 + 1]; see lil_block_range */
    const uint8_t *columns; /* u16 of each stored block: its inputs begin at column * lil_block_cols */
    const uint8_t *codes;   /* lil_block_bytes of each stored block, as in `tiles` */
    uint32_t count;         /* of stored blocks: all of them lie in the file */
} lil_blocks;

/* lil_open has verified the index. But a mapped file that somebody changes must not lead outside it, so what is read
 * here is bounded again, and a kernel skips a block whose column is not one of its inputs. */
static inline lil_blocks lil_blocks_of(const lil_constant *codes) {
    const size_t block_rows = (codes->rows + 15) / 16, starts_bytes = 4 * (block_rows + 1);
    uint64_t count = lil_u32_at(codes->data, block_rows); /* its place is verified: it depends on the shape alone */
    uint64_t index_bytes = (starts_bytes + 2 * count + 63) / 64 * 64;
    if (index_bytes + count * lil_block_bytes(codes->format) > codes->available) {
        count = index_bytes = 0;
    }
    return (lil_blocks){codes->data, codes->data + starts_bytes, codes->data + (size_t)index_bytes, (uint32_t)count};
}

/* The stored blocks of block row `row`: numbers [*begin, *end), begin <= end <= count. */
static inline void lil_block_range(const lil_blocks *blocks, size_t row, size_t *begin, size_t *end) {
    const uint32_t first = lil_u32_at(blocks->starts, row), last = lil_u32_at(blocks->starts, row + 1);
    *end = last < blocks->count ? last : blocks->count;
    *begin = first < *end ? first : *end;
}

/* Level of each 4-bit code, and of each 6-bit code; code 8, and 32, is in no file. An 8-bit code is its level in two's
 * complement. */
static const int8_t lil_levels_int4[16] = {0, 1, 2, 3, 4, 5, 6, 7, 0, -7, -6, -5, -4, -3, -2, -1};
static const int8_t lil_levels_pot4[16] = {0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64};
static const int8_t lil_levels_apot4[16] = {0, 1, 4, 8, 2, 3, 6, 10, 0, -1, -4, -8, -2, -3, -6, -10};
static const int8_t lil_levels_int6[64] = {
    0,   1,   2,   3,   4,   5,   6,   7,   8,   9,   10,  11,  12,  13,  14,  15,
    16,  17,  18,  19,  20,  21,  22,  23,  24,  25,  26,  27,  28,  29,  30,  31,
    0,   -31, -30, -29, -28, -27, -26, -25, -24, -23, -22, -21, -20, -19, -18, -17,
    -16, -15, -14, -13, -12, -11, -10, -9,  -8,  -7,  -6,  -5,  -4,  -3,  -2,  -1,
};
static const int8_t lil_levels_apot6[64] = {
    0, 2,  16,  64,  1,  3,  17,  65,  8,  10,  24,  72,  32,  34,  48,  96,
    4, 6,  20,  68,  5,  7,  21,  69,  12, 14,  28,  76,  36,  38,  52,  100,
    0, -2, -16, -64, -1, -3, -17, -65, -8, -10, -24, -72, -32, -34, -48, -96,
    -4, -6, -20, -68, -5, -7, -21, -69, -12, -14, -28, -76, -36, -38, -52, -100,
};

/* The levels of a format's codes; NULL where a code is its level. */
static inline const int8_t *lil_levels_of(uint16_t format) {
    switch (format) {
    case LIL_INT4: return lil_levels_int4;
    case LIL_POT4: return lil_levels_pot4;
    case LIL_INT6: return lil_levels_int6;
    case LIL_APOT4: return lil_levels_apot4;
    case LIL_APOT6: return lil_levels_apot6;
    default: return NULL; /* LIL_INT8 */
    }
}

static inline int8_t lil_level_8bit(uint8_t code) {
    return (int8_t)(code < 128 ? code : code - 256);
}

/* The largest of symmetric levels, by the attribute `bits`: 0 (which is 8), 6 or 4. */
static inline float lil_largest_level(uint32_t bits) {
    return bits == 4 ? 7.0f : bits == 6 ? 31.0f : 127.0f;
}

/* Table attention's weight of t: rint(127 * 2^(-t/32)), and 0 for 255 (src/lilliput/program/mathfn.py). */
extern const uint8_t lil_weights[256 + 3]; /* the last ones for who reads four at a time */

/* Attention's scratch: where each part starts, in bytes: all multiples of 64. A kernel may take up to LIL_QUERIES
 * queries together, and order the levels as suits it; the comments say what the scalar one does. */
enum { LIL_QUERIES = 16 };
typedef struct lil_attention_scratch {
    uint64_t width;         /* P16(dh) */
    uint64_t keys;          /* int8 [P16(T), P16(dh)] levels of one head, columns past dh 0 */
    uint64_t values;        /* the same */
    uint64_t queries;       /* int8 [16 * P16(dh)] levels of up to LIL_QUERIES queries */
    uint64_t key_scales;    /* float32 [P16(T)] */
    uint64_t value_scales;  /* float32 [P16(T)] */
    uint64_t key_sums;      /* int32 [P16(T)]: for kernels that need sums of a key's levels */
    uint64_t scores;        /* float32 [16 * P16(T)]: s, then e, then g */
    uint64_t probabilities; /* int8 [16 * P16(T)] levels 0..127 */
    uint64_t bytes;         /* in all */
} lil_attention_scratch;

/* Bytes of scratch for each token of a multiple of 16, in a sequence program: never less than the layout's, whose
 * queries it counts a token. */
static inline uint64_t lil_attention_token_bytes(uint32_t head_dim, bool by_table) {
    const uint64_t width = ((uint64_t)head_dim + 15) / 16 * 16;
    return 3 * width + (by_table ? 132 : 92);
}

/* Table attention's scratch: as above, with weights in rows of a multiple of 64 tokens. */
typedef struct lil_table_scratch {
    uint64_t width;      /* P16(dh) */
    uint64_t row;        /* tokens rounded up to a multiple of 64 */
    uint64_t keys;       /* int8 [P16(T) * P16(dh)] levels of one head */
    uint64_t values;     /* the same */
    uint64_t queries;    /* int8 [16 * P16(dh)] levels of up to LIL_QUERIES queries */
    uint64_t key_scales; /* float32 [P16(T)] */
    uint64_t scores;     /* float32 [16 * P16(T)] */
    uint64_t weights;    /* uint8 [16][row] */
    uint64_t bytes;      /* in all, a multiple of 64 */
} lil_table_scratch;

/* Lay it out. False where a size does not fit 64 bits. */
bool lil_table_layout(uint64_t num_tokens, uint64_t head_dim, lil_table_scratch *scratch);

/* Lay out the scratch of `num_tokens` tokens and heads of `head_dim`. False where a size does not fit 64 bits. */
bool lil_attention_layout(uint64_t num_tokens, uint64_t head_dim, lil_attention_scratch *scratch);

#endif
