/* lil_check_tensors: the tensors' records, and every byte of the constants. The size of a tensor in `blocks` depends on
 * its index, so the index is verified before anything behind it is looked at. */
#include "lil_check.h"
#include "lil_checked.h"
#include "lil_format.h"
#include "lil_kernels.h"

enum { BLOCK_ROWS = 16 };

/* Codes of a tensor on the way through its checks. */
typedef struct codes {
    const lil_tensor *tensor;
    const uint8_t *data;  /* the tensor's first byte */
    uint64_t block_rows;  /* P16(rows) / 16 */
    uint64_t block_cols;  /* columns of the grid of blocks */
    uint64_t num_blocks;  /* stored ones */
} codes;

static uint64_t blocks_along(uint32_t side, uint32_t block_side) {
    return ((uint64_t)side + block_side - 1) / block_side; /* side <= 2^24 */
}

/* Whether a tensor may have this format, layout and shape. */
static bool record_fits(const lil_tensor *t) {
    return t->format >= LIL_FORMAT_F32 && t->format < LIL_NUM_FORMATS && t->layout < LIL_NUM_LAYOUTS &&
           t->reserved == 0 && t->rows >= 1 && t->rows <= LIL_MAX_DIMENSION && t->cols >= 1 &&
           t->cols <= LIL_MAX_DIMENSION && (t->format >= LIL_INT8 || t->layout == LIL_ROWS) &&
           (t->layout != LIL_BLOCKS || t->cols <= LIL_MAX_DEPTH);
}

/* Bytes of a tensor whose record fits, in `rows`. */
static bool rows_bytes(const lil_tensor *tensor, uint64_t *bytes) {
    const uint32_t bits = tensor->format == LIL_FORMAT_F32 ? 32
                          : tensor->format == LIL_BF16     ? 16
                                                           : lil_code_bits(tensor->format);
    uint64_t row;
    return lil_mul(tensor->cols, bits, &row) && lil_align(row, 8, &row) && lil_mul(row / 8, tensor->rows, bytes);
}

static bool tiles_bytes(codes *c, uint64_t *bytes) {
    return lil_mul(c->block_rows, c->block_cols, &c->num_blocks) &&
           lil_mul(c->num_blocks, lil_block_bytes(c->tensor->format), bytes);
}

/* The same in `blocks`: the index says how many there are. False too where `available` bytes do not hold the index. */
static bool blocks_bytes(codes *c, uint64_t available, uint64_t *bytes) {
    uint64_t starts, columns, index, stored;
    if (!lil_add(c->block_rows, 1, &starts) || !lil_mul(starts, sizeof(uint32_t), &starts) || starts > available) {
        return false;
    }
    c->num_blocks = lil_u32_at(c->data, (size_t)c->block_rows);
    return lil_mul(c->num_blocks, sizeof(uint16_t), &columns) && lil_add(starts, columns, &index) &&
           lil_align(index, LIL_FILE_ALIGNMENT, &index) &&
           lil_mul(c->num_blocks, lil_block_bytes(c->tensor->format), &stored) && lil_add(index, stored, bytes);
}

/* Whether starts and columns name each stored block once, in order, and zeros fill the gap behind them. The index lies
 * inside the file. */
static bool index_is_good(const codes *c, const lil_blocks *stored) {
    uint32_t first = lil_u32_at(stored->starts, 0);
    if (first != 0) {
        return false;
    }
    for (size_t row = 0; row < c->block_rows; row++) {
        const uint32_t last = lil_u32_at(stored->starts, row + 1);
        if (last < first || last > c->num_blocks) {
            return false;
        }
        uint32_t least = 0; /* the least column that the next block may have: so there are never too many */
        for (uint32_t i = first; i < last; i++) {
            const uint32_t column = lil_u16_at(stored->columns, i);
            if (column < least || column >= c->block_cols) {
                return false;
            }
            least = column + 1;
        }
        first = last;
    }
    const uint8_t *end = stored->columns + 2 * c->num_blocks;
    return lil_all_zero(end, (uint64_t)(stored->codes - end));
}

/* Whether every value of an f32 or bf16 tensor is finite: no exponent is all ones. */
static bool all_finite(const uint8_t *bytes, const lil_tensor *tensor) {
    const size_t count = (size_t)tensor->rows * tensor->cols, width = tensor->format == LIL_FORMAT_F32 ? 4 : 2;
    bool finite = true;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *top = bytes + width * i + width - 2; /* the upper 16 bits hold sign and exponent */
        finite &= ((top[1] & 0x7F) != 0x7F) | ((top[0] & 0x80) == 0);
    }
    return finite;
}

/* Whether every 8-bit or 4-bit code has a level: the lowest in two's complement, and `pot4`'s 8, have none. */
static bool bytes_have_levels(const uint8_t *bytes, uint64_t count, uint16_t format) {
    /* Eight bytes at a time: a field of bits is 0 after the exclusive or where it is the forbidden code, and below the
     * lowest such field nothing borrows, so "any" is exact. */
    const uint64_t top = format == LIL_INT8 ? 0x8080808080808080u : 0x8888888888888888u;
    const uint64_t one = top >> (format == LIL_INT8 ? 7 : 3);
    uint64_t found = 0;
    for (uint64_t i = 0; i < count; i += 8) {
        uint64_t word = 0; /* past the end: code 0 */
        memcpy(&word, bytes + i, count - i < 8 ? (size_t)(count - i) : 8);
        word ^= top;
        found |= (word - one) & ~word & top;
    }
    return found == 0;
}

/* Whether every code in blocks has a level; `bytes` of whole blocks. */
static bool blocks_have_levels(const uint8_t *data, uint64_t bytes, uint16_t format) {
    if (lil_code_bits(format) != 6) {
        return bytes_have_levels(data, bytes, format);
    }
    bool good = true;
    for (const uint8_t *block = data; block < data + bytes; block += lil_block_bytes(format)) {
        for (size_t i = 0; i < 64; i++) {
            const uint32_t first = block[i], second = block[64 + i], high = block[128 + i];
            good &= ((first & 0x0F) != 0) | ((high & 0x03) != 0x02);
            good &= ((first & 0xF0) != 0) | ((high & 0x0C) != 0x08);
            good &= ((second & 0x0F) != 0) | ((high & 0x30) != 0x20);
            good &= ((second & 0xF0) != 0) | ((high & 0xC0) != 0x80);
        }
    }
    return good;
}

/* Whether each row of codes has only levels, and zeros behind its last column. */
static bool rows_are_good(const codes *c, uint64_t bytes) {
    const lil_tensor *t = c->tensor;
    const uint32_t bits = lil_code_bits(t->format), used = bits * (t->cols % 8) % 8; /* bits of a row's last byte */
    const size_t row_bytes = (size_t)(bytes / t->rows);
    bool good = bits == 6 || bytes_have_levels(c->data, bytes, t->format);
    for (size_t r = 0; r < t->rows && (bits == 6 || used != 0); r++) {
        const uint8_t *row = c->data + r * row_bytes;
        for (size_t i = 0; bits == 6 && i < t->cols; i++) {
            good &= lil_row_code(row, t->format, i) != 32;
        }
        good &= used == 0 || row[row_bytes - 1] >> used == 0;
    }
    return good;
}

/* Code of output `n` and input `k` of a block. */
static uint32_t block_code(const uint8_t *block, uint16_t format, size_t n, size_t k) {
    const size_t i = 4 * n + k % 4, tile = k / 4;
    if (lil_code_bits(format) == 8) {
        return block[64 * tile + i];
    }
    const uint32_t low = block[64 * (tile / 2) + i] >> (tile % 2 == 0 ? 0 : 4) & 15u;
    return lil_code_bits(format) == 4 ? low : low | (block[128 + i] >> 2 * tile & 3u) << 4;
}

/* Whether the codes that pad a block are 0: `rows` of its outputs and `cols` of its inputs are the tensor's. */
static bool block_is_padded(const uint8_t *block, uint16_t format, uint64_t rows, uint64_t cols) {
    const size_t width = lil_block_cols(format);
    uint32_t any = 0;
    for (size_t n = 0; n < BLOCK_ROWS && (rows < BLOCK_ROWS || cols < width); n++) {
        for (size_t k = n < rows ? (size_t)cols : 0; k < width; k++) {
            any |= block_code(block, format, n, k);
        }
    }
    return any == 0;
}

/* The part of a block at (`row`, `col`) of the grid that is the tensor's. */
static bool padding_is_good(const codes *c, const uint8_t *block, uint64_t row, uint64_t col) {
    const uint16_t format = c->tensor->format;
    const uint64_t rows = c->tensor->rows - BLOCK_ROWS * row, cols = c->tensor->cols - lil_block_cols(format) * col;
    return block_is_padded(block, format, rows, cols);
}

static bool tiles_are_padded(const codes *c) {
    const size_t block_bytes = lil_block_bytes(c->tensor->format);
    bool good = true;
    for (size_t row = 0; row < c->block_rows; row++) {
        const bool whole = BLOCK_ROWS * (row + 1) <= c->tensor->rows; /* then only the last column can have padding */
        for (size_t col = whole ? (size_t)c->block_cols - 1 : 0; col < c->block_cols; col++) {
            good &= padding_is_good(c, c->data + (row * (size_t)c->block_cols + col) * block_bytes, row, col);
        }
    }
    return good;
}

/* Whether every stored block holds something, and its padding is 0. The index is good. */
static lil_status check_stored_blocks(const codes *c, const lil_blocks *stored) {
    const size_t block_bytes = lil_block_bytes(c->tensor->format);
    for (size_t row = 0; row < c->block_rows; row++) {
        const uint32_t last = lil_u32_at(stored->starts, row + 1);
        for (uint32_t i = lil_u32_at(stored->starts, row); i < last; i++) {
            const uint8_t *block = stored->codes + i * block_bytes;
            if (lil_all_zero(block, block_bytes)) {
                return LIL_BAD_INDEX;
            }
            if (!padding_is_good(c, block, row, lil_u16_at(stored->columns, i))) {
                return LIL_BAD_CODE;
            }
        }
    }
    return LIL_OK;
}

/* Size and content of a tensor of codes of which `available` bytes may be read. */
static lil_status check_codes(const lil_tensor *tensor, const uint8_t *data, uint64_t available, uint64_t *bytes) {
    codes c = {.tensor = tensor,
               .data = data,
               .block_rows = blocks_along(tensor->rows, BLOCK_ROWS),
               .block_cols = blocks_along(tensor->cols, lil_block_cols(tensor->format))};
    const bool has_size = tensor->layout == LIL_ROWS    ? rows_bytes(tensor, bytes)
                          : tensor->layout == LIL_TILES ? tiles_bytes(&c, bytes)
                                                        : blocks_bytes(&c, available, bytes);
    if (!has_size || *bytes > LIL_MAX_BYTES || *bytes > available) {
        return LIL_BAD_TENSOR;
    }
    if (tensor->layout == LIL_ROWS) {
        return rows_are_good(&c, *bytes) ? LIL_OK : LIL_BAD_CODE;
    }
    if (tensor->layout == LIL_TILES) {
        return blocks_have_levels(data, *bytes, tensor->format) && tiles_are_padded(&c) ? LIL_OK : LIL_BAD_CODE;
    }
    const lil_constant constant = {data, tensor->rows, tensor->cols, tensor->format, tensor->layout, (size_t)*bytes};
    const lil_blocks stored = lil_blocks_of(&constant);
    if (!index_is_good(&c, &stored)) {
        return LIL_BAD_INDEX;
    }
    if (!blocks_have_levels(stored.codes, c.num_blocks * lil_block_bytes(tensor->format), tensor->format)) {
        return LIL_BAD_CODE;
    }
    return check_stored_blocks(&c, &stored);
}

static lil_status check_floats(const lil_tensor *tensor, const uint8_t *data, uint64_t available, uint64_t *bytes) {
    if (!rows_bytes(tensor, bytes) || *bytes > LIL_MAX_BYTES || *bytes > available) {
        return LIL_BAD_TENSOR;
    }
    return all_finite(data, tensor) ? LIL_OK : LIL_BAD_CONSTANT;
}

/* Codes of a tensor in `blocks`, padding and what is left out included. */
static uint64_t block_codes(const lil_tensor *tensor) {
    const uint32_t width = lil_block_cols(tensor->format); /* rows <= 2^24, cols <= 2^16: at most 2^40 */
    return BLOCK_ROWS * blocks_along(tensor->rows, BLOCK_ROWS) * width * blocks_along(tensor->cols, width);
}

lil_status lil_check_tensors(lil_model *model, uint64_t constants_bytes) {
    uint64_t end = 0, codes_in_blocks = 0;
    for (uint32_t i = 0; i < model->num_tensors; i++) {
        const lil_tensor tensor = lil_tensor_at(model->tensors, i);
        uint64_t bytes, start;
        if (!record_fits(&tensor) || !lil_align(end, LIL_FILE_ALIGNMENT, &start) || tensor.offset != start ||
            start > constants_bytes) {
            return lil_refuse(model, LIL_BAD_TENSOR, i);
        }
        if (!lil_all_zero(model->constants + end, start - end)) {
            return lil_refuse(model, LIL_BAD_GAP, LIL_SECTION_CONSTANTS);
        }
        codes_in_blocks += tensor.layout == LIL_BLOCKS ? block_codes(&tensor) : 0;
        if (codes_in_blocks > LIL_MAX_BLOCK_CODES) {
            return lil_refuse(model, LIL_BAD_TENSOR, i);
        }
        const uint8_t *data = model->constants + start;
        const lil_status status = tensor.format >= LIL_INT8
                                      ? check_codes(&tensor, data, constants_bytes - start, &bytes)
                                      : check_floats(&tensor, data, constants_bytes - start, &bytes);
        if (status != LIL_OK) {
            return lil_refuse(model, status, i);
        }
        end = start + bytes; /* inside the section: no overflow */
    }
    return end == constants_bytes ? LIL_OK : lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_CONSTANTS);
}
