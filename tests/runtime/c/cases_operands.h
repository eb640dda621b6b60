/* Memory and operands of the random calls of cases_calls.h: inputs, outputs, and tensors in every format and layout.
 *
 * Memory is as unfriendly as running allows: constants and the caller's inputs end at a page that must not be touched,
 * or near it at any alignment; what is in the arena lies at multiples of 64 with rubbish up to the next one, and that
 * page behind it; rows of one sequence among others, and the model's output, which a later op may read, are aligned to
 * 4. Outputs start with a pattern that must stay wherever the part does not write. */
#ifndef CASES_OPERANDS_H
#define CASES_OPERANDS_H

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

/* Input `i`, whose rows may be those of one sequence among others: then they end anywhere, with nothing behind them
 * that may be read, and are aligned to 4. */
static float *add_rows(test_case *c, int i, size_t rows, size_t cols) {
    if (one_in(2)) {
        return add_input(c, i, rows, cols, true);
    }
    float *x = (float *)(void *)allocate_at_end(c, rows * cols * sizeof *x);
    c->call.in[i] = (lil_input){x, rows, cols};
    return x;
}

static float *add_floats(test_case *c, int i, size_t rows, size_t cols) {
    float *x = add_input(c, i, rows, cols, true);
    fill_floats(x, rows, cols, cols);
    return x;
}

/* Output `i`. One row of floats may be the model's output, many may be those of one sequence among others. */
static void add_output(test_case *c, int i, size_t rows, size_t cols, bool is_float) {
    const size_t data_bytes = rows * cols * element_bytes(is_float);
    const size_t shift = GUARD + (is_float && one_in(2) ? 4 * below(LIL_ALIGNMENT / 4) : 0);
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

#endif
