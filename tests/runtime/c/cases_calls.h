/* Random calls of each kind of kernel, for cases.c: shapes, attributes, tensors in every format and layout, and parts.
 *
 * Memory is as unfriendly as lil_run allows: constants and pixels end at a page that must not be touched, or near it
 * at any alignment; what is in the arena lies at multiples of 64 with rubbish up to the next one, and that page behind
 * it; the model's output, which a later op may read, is aligned to 4. Outputs start with a pattern that must stay
 * wherever the part does not write. */
#ifndef CASES_CALLS_H
#define CASES_CALLS_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "lil.h"
#include "lil_kernels.h"

#include "cases_random.h"

enum { MAX_REGIONS = 8, REGION_BYTES = 1 << 23, PAGE_BYTES = 1 << 16, GUARD = 64 }; /* pages are at most so large */

/* One call, and for each output the memory of the scalar kernel and of the one it is compared with. */
typedef struct test_case {
    lil_call call;
    lil_part part;
    size_t scratch_bytes;
    uint8_t *outputs[2][LIL_NUM_OUTPUTS]; /* [0] the scalar kernel's; guards around them included */
    size_t shift[LIL_NUM_OUTPUTS];        /* from there to the output itself */
    size_t bytes[LIL_NUM_OUTPUTS];        /* with the guards; 0: no such output */
    bool is_float[LIL_NUM_OUTPUTS];
    size_t num_regions; /* in use */
} test_case;

static void *checked(void *memory) {
    if (memory == NULL || memory == MAP_FAILED) {
        fprintf(stderr, "no memory\n");
        exit(4);
    }
    return memory;
}

/* The last `bytes` before a page that faults when it is touched. Regions are made once and used by every case. */
static uint8_t *allocate_at_end(test_case *c, size_t bytes) {
    static uint8_t *regions[MAX_REGIONS];
    if (c->num_regions == MAX_REGIONS || bytes > REGION_BYTES) {
        fprintf(stderr, "a case needs more memory than is planned\n");
        exit(4);
    }
    uint8_t **region = &regions[c->num_regions++];
    if (*region == NULL) {
        const int access = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
        *region = checked(mmap(NULL, REGION_BYTES + PAGE_BYTES, access, flags, -1, 0));
        if (mprotect(*region + REGION_BYTES, PAGE_BYTES, PROT_NONE) != 0) {
            exit(4);
        }
    }
    return *region + REGION_BYTES - bytes;
}

/* The same for what lies in a file, or is the caller's: half of them end a little before that page, so that what has a
 * multiple of 64 bytes comes at any alignment too. */
static uint8_t *allocate_anywhere(test_case *c, size_t bytes) {
    return allocate_at_end(c, bytes + (one_in(2) ? 0 : below(64)));
}

static size_t round_up_64(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static void release(test_case *c) {
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        free(c->outputs[0][i]);
        free(c->outputs[1][i]);
    }
}

static size_t element_bytes(bool is_float) {
    return is_float ? sizeof(float) : 1;
}

/* Input `i`, to be filled. One row of floats may be the model's output, which has nothing behind it. */
static void *add_input(test_case *c, int i, size_t rows, size_t cols, bool is_float) {
    const size_t bytes = rows * cols * element_bytes(is_float);
    const size_t padded = is_float && rows == 1 && one_in(4) ? bytes : round_up_64(bytes);
    uint8_t *data = allocate_at_end(c, padded);
    memset(data + bytes, 0x7F, padded - bytes);
    c->call.in[i] = (lil_input){data, rows, cols};
    return data;
}

static float *add_floats(test_case *c, int i, size_t rows, size_t cols) {
    float *x = add_input(c, i, rows, cols, true);
    fill_floats(x, rows, cols, cols);
    return x;
}

/* Output `i`. One row of floats may be the model's output. */
static void add_output(test_case *c, int i, size_t rows, size_t cols, bool is_float) {
    const size_t data_bytes = rows * cols * element_bytes(is_float);
    const size_t shift = GUARD + (is_float && rows == 1 && one_in(2) ? 4 * below(LIL_ALIGNMENT / 4) : 0);
    c->shift[i] = shift;
    c->bytes[i] = shift + data_bytes + GUARD;
    c->is_float[i] = is_float;
    for (int which = 0; which < 2; which++) {
        c->outputs[which][i] = checked(aligned_alloc(LIL_ALIGNMENT, round_up_64(c->bytes[i])));
    }
    for (size_t b = 0; b < c->bytes[i]; b++) {
        c->outputs[0][i][b] = (uint8_t)random_bits();
    }
    memcpy(c->outputs[1][i], c->outputs[0][i], c->bytes[i]);
    c->call.out[i] = (lil_output){NULL, rows, cols};
}

static uint8_t *add_tensor(test_case *c, int i, uint16_t format, uint16_t layout, size_t rows, size_t cols,
                           size_t bytes) {
    uint8_t *data = allocate_anywhere(c, bytes);
    c->call.tensor[i] = (lil_constant){data, rows, cols, format, layout, bytes};
    return data;
}

static void add_bf16(test_case *c, int i, size_t n, float magnitude, bool is_signed) {
    fill_bf16(add_tensor(c, i, LIL_BF16, LIL_ROWS, 1, n, 2 * n), n, magnitude, is_signed);
}

static const code_format *random_format(void) {
    return &code_formats[below(sizeof code_formats / sizeof *code_formats)];
}

static void add_codes_in_rows(test_case *c, int i, size_t rows, size_t cols) {
    const code_format *format = random_format();
    const code_class class = (code_class)below(NUM_CODE_CLASSES);
    const size_t stride = (cols * format->bits + 7) / 8;
    uint8_t *data = add_tensor(c, i, format->id, LIL_ROWS, rows, cols, rows * stride);
    memset(data, 0, rows * stride);
    for (size_t r = 0; r < rows; r++) {
        for (size_t k = 0; k < cols; k++) {
            const uint8_t code = random_code(format, class);
            for (size_t b = k * format->bits, left = code; left > 0; b++, left >>= 1) {
                data[r * stride + b / 8] |= (uint8_t)((left & 1) << b % 8);
            }
        }
    }
}

/* The bytes of a block of 2 or 4 tiles, whose codes are tile[t][4 * output + input]. */
static void store_block(unsigned bits, uint8_t tile[4][64], uint8_t *block) {
    for (size_t i = 0; i < 64; i++) {
        if (bits == 8) {
            block[i] = tile[0][i];
            block[64 + i] = tile[1][i];
        } else if (bits == 4) {
            block[i] = (uint8_t)(tile[0][i] | tile[1][i] << 4);
        } else {
            block[i] = (uint8_t)((tile[0][i] & 15) | (tile[1][i] & 15) << 4);
            block[64 + i] = (uint8_t)((tile[2][i] & 15) | (tile[3][i] & 15) << 4);
            block[128 + i] = (uint8_t)(tile[0][i] >> 4 | tile[1][i] >> 4 << 2 | tile[2][i] >> 4 << 4 |
                                       tile[3][i] >> 4 << 6);
        }
    }
}

/* Blocks of outputs [n0, n0 + 16) at `block`; `zeros` of ten, and those that happen to be, are all zero. */
static void make_blocks(const code_format *format, size_t zeros, size_t n0, size_t rows, size_t cols, uint8_t *block) {
    const code_class class = (code_class)below(NUM_CODE_CLASSES);
    const size_t width = lil_block_cols(format->id);
    for (size_t k0 = 0; k0 < cols; k0 += width, block += lil_block_bytes(format->id)) {
        uint8_t tile[4][64] = {{0}};
        const bool is_zero = below(10) < zeros;
        for (size_t n = 0; n < 16 && n0 + n < rows && !is_zero; n++) {
            for (size_t k = 0; k < width && k0 + k < cols; k++) {
                tile[k / 4][4 * n + k % 4] = random_code(format, class);
            }
        }
        store_block(format->bits, tile, block);
    }
}

/* The layout `blocks` of `block_rows` x `block_cols` blocks at `blocks`. */
static void add_blocks(test_case *c, int i, uint16_t format, size_t rows, size_t cols, const uint8_t *blocks) {
    static const uint8_t zero[192] = {0};
    const size_t bytes = lil_block_bytes(format), block_rows = (rows + 15) / 16;
    const size_t block_cols = (cols + lil_block_cols(format) - 1) / lil_block_cols(format);
    uint32_t count = 0;
    for (size_t b = 0; b < block_rows * block_cols; b++) {
        count += memcmp(blocks + b * bytes, zero, bytes) != 0;
    }
    const size_t columns = 4 * (block_rows + 1), codes = round_up_64(columns + 2 * count);
    uint8_t *data = add_tensor(c, i, format, LIL_BLOCKS, rows, cols, codes + count * bytes);
    memset(data, 0, codes);
    count = 0;
    for (size_t r = 0; r < block_rows; r++) {
        for (uint16_t column = 0; column < block_cols; column++, blocks += bytes) {
            if (memcmp(blocks, zero, bytes) != 0) {
                memcpy(data + columns + 2 * count, &column, sizeof column);
                memcpy(data + codes + count * bytes, blocks, bytes);
                count++;
            }
        }
        memcpy(data + 4 * (r + 1), &count, sizeof count);
    }
}

/* In tiles or in blocks. */
static void add_codes_in_tiles(test_case *c, int i, size_t rows, size_t cols) {
    const code_format *format = random_format();
    const size_t width = lil_block_cols(format->id);
    const size_t block_row_bytes = (cols + width - 1) / width * lil_block_bytes(format->id);
    const size_t bytes = (rows + 15) / 16 * block_row_bytes, zeros = one_in(2) ? 0 : between(1, 10);
    uint8_t *blocks = checked(malloc(bytes));
    for (size_t n0 = 0; n0 < rows; n0 += 16) {
        make_blocks(format, one_in(8) ? 10 : zeros, n0, rows, cols, blocks + n0 / 16 * block_row_bytes);
    }
    if (one_in(2)) {
        add_blocks(c, i, format->id, rows, cols, blocks);
    } else {
        memcpy(add_tensor(c, i, format->id, LIL_TILES, rows, cols, bytes), blocks, bytes);
    }
    free(blocks);
}

/* All of `count` rows or heads, or some. */
static void set_part(test_case *c, size_t count) {
    const size_t begin = one_in(2) ? 0 : below(count);
    c->part.begin = begin;
    c->part.end = begin == 0 && !one_in(4) ? count : between(begin + 1, count);
}

static void make_normalize(test_case *c) {
    const size_t rows = random_size(70), cols = one_in(2) ? between(1, 4) : random_size(200);
    uint8_t *x = allocate_anywhere(c, rows * cols);
    for (size_t i = 0; i < rows * cols; i++) {
        x[i] = (uint8_t)random_bits();
    }
    c->call.in[0] = (lil_input){x, rows, cols};
    for (int i = 0; i < 2; i++) {
        fill_f32(add_tensor(c, i, LIL_FORMAT_F32, LIL_ROWS, 1, cols, 4 * cols), cols);
    }
    add_output(c, 0, rows, cols, true);
    set_part(c, rows);
}

static void make_unfold(test_case *c) {
    const size_t height = between(1, 12), width = between(1, one_in(8) ? 40 : 12);
    const size_t channels = one_in(2) ? between(1, 4) : random_size(40), kernel = between(1, 5);
    size_t padding = below(kernel);
    while (kernel > height + 2 * padding || kernel > width + 2 * padding) {
        padding++; /* ends: kernel - 1 is enough */
    }
    const size_t stride = between(1, kernel + 1);
    const size_t out_height = (height + 2 * padding - kernel) / stride + 1;
    const size_t out_width = (width + 2 * padding - kernel) / stride + 1;
    const size_t attributes[] = {height, width, kernel, stride, padding};
    for (size_t i = 0; i < 5; i++) {
        c->call.a[i] = (uint32_t)attributes[i];
    }
    (void)add_floats(c, 0, height * width, channels);
    add_output(c, 0, out_height * out_width, kernel * kernel * channels, true);
    set_part(c, out_height * out_width);
}

static void make_quantize(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(one_in(64) ? 2000 : 200);
    (void)add_floats(c, 0, rows, cols);
    add_output(c, 0, rows, (cols + 7) / 8 * 8, false);
    add_output(c, 1, rows, 1, true);
    set_part(c, rows);
}

static void make_product(test_case *c) {
    const bool deep = one_in(100);
    const size_t rows = random_size(70), depth = deep ? between(1000, 4200) : random_size(one_in(8) ? 600 : 130);
    const size_t outputs = random_size(deep ? 33 : one_in(8) ? 300 : 80), padded = (depth + 7) / 8 * 8;
    fill_levels(add_input(c, 0, rows, padded, false), rows * padded); /* past K too: the codes there are 0 */
    float *scales = add_floats(c, 1, rows, 1);
    const bool usual = !one_in(4);
    for (size_t r = 0; r < rows && usual; r++) {
        scales[r] = fabsf(random_unit()) * 0.05f;
    }
    add_codes_in_tiles(c, 0, outputs, depth);
    add_bf16(c, 1, outputs, one_in(2) ? 0.005f : 0.1f, false);
    add_bf16(c, 2, outputs, 4.0f, true);
    add_output(c, 0, rows, outputs, true);
    set_part(c, rows);
}

static void make_linear(test_case *c) {
    make_product(c);
    c->call.a[0] = (uint32_t)below(3);
}

static void make_linear_add(test_case *c) {
    make_product(c);
    (void)add_floats(c, 2, c->call.out[0].rows, c->call.out[0].cols);
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void make_layer_norm(test_case *c) {
    static const float some_eps[] = {1e-6f, 1e-5f, 1e-45f, 3e38f, 1.0f};
    const size_t rows = random_size(70), cols = random_size(one_in(64) ? 2000 : 200);
    (void)add_floats(c, 0, rows, cols);
    add_bf16(c, 0, cols, 2.0f, true);
    add_bf16(c, 1, cols, 2.0f, true);
    add_output(c, 0, rows, cols, true);
    c->call.a[0] = bits_of(some_eps[below(5)]);
    set_part(c, rows);
}

static void make_attention(test_case *c) {
    static const float some_scales[] = {0.25f, 0.125f, 1.0f, -3.0f, 0.0f, 3e38f, 1e-40f};
    const size_t tokens = one_in(256) ? between(100, 260) : random_size(one_in(12) ? 100 : 33);
    const size_t head_dim = random_size(one_in(3) ? 80 : 40);
    const size_t num_heads = tokens > 100 ? 1 : between(1, one_in(4) ? 4 : 2);
    const size_t width = num_heads * head_dim, asking = one_in(4) ? below(tokens) : 0; /* 0: all of them ask */
    lil_attention_scratch at;
    (void)lil_attention_layout(tokens, head_dim, &at);
    float *x = add_input(c, 0, tokens, 3 * width, true);
    for (size_t i = 0; i < tokens * 3 * width; i++) {
        x[i] = random_unit() * 3.0f;
    }
    for (size_t block = one_in(2) ? 3 : below(3); block < 3; block++) { /* all plain; values; keys, values; all */
        fill_floats(x + block * width, tokens, width, 3 * width);
    }
    add_output(c, 0, asking > 0 ? asking : tokens, width, true);
    c->scratch_bytes = (size_t)at.bytes;
    c->call.out[1] = (lil_output){NULL, 1, c->scratch_bytes}; /* another thread's, perhaps: kernels take the part's */
    c->call.a[0] = (uint32_t)num_heads;
    c->call.a[1] = (uint32_t)head_dim;
    c->call.a[2] = bits_of(one_in(3) ? some_scales[below(7)] : 4.0f / (float)head_dim);
    c->call.a[3] = (uint32_t)asking;
    set_part(c, num_heads);
}

static void make_prepend_token(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    (void)add_floats(c, 0, rows, cols);
    add_codes_in_rows(c, 0, 1, cols);
    add_bf16(c, 1, 1, 1.0f, false);
    add_output(c, 0, rows + 1, cols, true);
    c->part.end = 1;
}

static void make_add_positions(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    (void)add_floats(c, 0, rows, cols);
    add_codes_in_rows(c, 0, rows, cols);
    add_bf16(c, 1, rows, 0.1f, false);
    add_output(c, 0, rows, cols, true);
    set_part(c, rows);
}

static void make_select_row(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    (void)add_floats(c, 0, rows, cols);
    add_output(c, 0, 1, cols, true);
    c->call.a[0] = (uint32_t)below(rows);
    c->part.end = 1;
}

static void make_mean_rows(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    (void)add_floats(c, 0, rows, cols);
    add_output(c, 0, 1, cols, true);
    c->part.end = 1;
}

static void (*const makers[LIL_NUM_KINDS])(test_case *c) = {
    [LIL_NORMALIZE] = make_normalize,
    [LIL_UNFOLD] = make_unfold,
    [LIL_QUANTIZE] = make_quantize,
    [LIL_LINEAR] = make_linear,
    [LIL_LINEAR_ADD] = make_linear_add,
    [LIL_LAYER_NORM] = make_layer_norm,
    [LIL_ATTENTION] = make_attention,
    [LIL_PREPEND_TOKEN] = make_prepend_token,
    [LIL_ADD_POSITIONS] = make_add_positions,
    [LIL_SELECT_ROW] = make_select_row,
    [LIL_MEAN_ROWS] = make_mean_rows,
};

#endif
