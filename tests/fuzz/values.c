/* The values of a draft's tensors: floats, and codes in each layout. */
#include "mutate.h"

/* Code `i` (0..63) of tile `tile` of a block. */
static uint32_t block_code(const uint8_t *block, uint16_t format, size_t tile, size_t i) {
    if (format == LIL_INT8) {
        return block[64 * tile + i];
    }
    const uint32_t low = block[64 * (tile / 2) + i] >> 4 * (tile % 2) & 15u;
    return lil_code_bits(format) == 6 ? low | (block[128 + i] >> 2 * tile & 3u) << 4 : low;
}

static void clear_block_code(uint8_t *block, uint16_t format, size_t tile, size_t i) {
    if (format == LIL_INT8) {
        block[64 * tile + i] = 0;
        return;
    }
    block[64 * (tile / 2) + i] &= tile % 2 == 0 ? 0xF0 : 0x0F;
    if (lil_code_bits(format) == 6) {
        block[128 + i] &= (uint8_t)~(3u << 2 * tile);
    }
}

/* Clear what a block may not hold: the code without a level, and what is beyond its `rows` outputs and `cols` inputs. */
static void clean_block(uint8_t *block, uint16_t format, size_t rows, size_t cols) {
    const uint32_t none = 1u << (lil_code_bits(format) - 1);
    for (size_t tile = 0; tile < lil_block_cols(format) / 4; tile++) {
        for (size_t i = 0; i < 64; i++) {
            if (i / 4 >= rows || 4 * tile + i % 4 >= cols || block_code(block, format, tile, i) == none) {
                clear_block_code(block, format, tile, i);
            }
        }
    }
}

/* The same of a row; its last byte's spare bits too. */
static void clean_row(uint8_t *row, uint16_t format, size_t cols) {
    const uint32_t bits = lil_code_bits(format);
    for (size_t bit = 0; bit < (cols * bits + 7) / 8 * 8; bit++) {
        if (bit >= cols * bits || (bit % bits == 0 && lil_row_code(row, format, bit / bits) == 1u << (bits - 1))) {
            for (size_t i = bit; i < bit + bits && i < (cols * bits + 7) / 8 * 8; i++) {
                row[i / 8] &= (uint8_t)~(1u << i % 8);
            }
        }
    }
}

static bool index_is_good(const uint8_t *values, size_t available, grid g) {
    size_t stored = 0;
    if (available < 4 * (g.rows + 1) || lil_u32_at(values, 0) != 0) {
        return false;
    }
    const uint8_t *columns = values + 4 * (g.rows + 1);
    for (size_t row = 0; row < g.rows; row++) {
        const uint32_t end = lil_u32_at(values, row + 1);
        if (end < stored || end > g.rows * g.cols || available < 4 * (g.rows + 1) + 2 * (size_t)end) {
            return false;
        }
        for (size_t least = 0; stored < end; stored++) {
            const size_t column = lil_u16_at(columns, stored);
            if (column < least || column >= g.cols) {
                return false;
            }
            least = column + 1;
        }
    }
    return true;
}

/* An index of blocks of which one in four is left out, or all. */
static void make_index(uint8_t *values, grid g) {
    uint32_t stored = 0;
    const uint32_t kept = below(6); /* of 4 */
    memset(values, 0, 4 * (g.rows + 1));
    for (size_t row = 0; row < g.rows; row++) {
        for (uint16_t col = 0; col < g.cols; col++) {
            if (below(4) < kept) {
                memcpy(values + 4 * (g.rows + 1) + 2 * (size_t)stored, &col, sizeof col);
                stored++;
            }
        }
        memcpy(values + 4 * (row + 1), &stored, sizeof stored);
    }
}

/* Blocks of the tensor's own part, none of them all zero. */
static void clean_grid(const lil_tensor *t, uint8_t *values) {
    const grid g = grid_of(t);
    const size_t block_bytes = lil_block_bytes(t->format), width = lil_block_cols(t->format);
    const bool all = t->layout == LIL_TILES;
    const size_t end = all ? 0 : 4 * (g.rows + 1) + 2 * (size_t)lil_u32_at(values, g.rows);
    uint8_t *block = values + align(end, LIL_FILE_ALIGNMENT);
    if (!all) {
        memset(values + end, 0, align(end, LIL_FILE_ALIGNMENT) - end);
    }
    for (size_t row = 0; row < g.rows; row++) {
        const size_t first = all ? 0 : lil_u32_at(values, row), last = all ? g.cols : lil_u32_at(values, row + 1);
        for (size_t i = first; i < last; i++, block += block_bytes) {
            const size_t col = all ? i : lil_u16_at(values + 4 * (g.rows + 1), i);
            clean_block(block, t->format, t->rows - 16 * row, t->cols - width * col);
            if (!all && block[0] == 0) {
                block[0] = 1; /* its first code is the tensor's */
            }
        }
    }
}

static void clean_floats(const lil_tensor *t, uint8_t *values, size_t bytes, bool is_scale) {
    const size_t width = t->format == LIL_BF16 ? 2 : 4;
    for (size_t top = width - 1; top < bytes; top += width) {
        if ((values[top] & 0x7F) == 0x7F) {
            values[top - 1] &= 0x7F; /* finite */
        }
        values[top] &= is_scale ? 0x7F : 0xFF;
    }
}

void make_values_valid(draft *d, uint32_t index, bool is_scale) {
    const lil_tensor *t = &d->tensors[index];
    uint8_t *values = d->values[index];
    if (t->layout == LIL_BLOCKS && !index_is_good(values, d->value_bytes[index], grid_of(t))) {
        make_index(values, grid_of(t));
        d->value_bytes[index] = 4 * (grid_of(t).rows + 1) + 2 * (size_t)lil_u32_at(values, grid_of(t).rows);
    }
    const size_t bytes = tensor_bytes_of(t, values, d->value_bytes[index]), width = t->format == LIL_BF16 ? 2 : 4;
    for (size_t i = d->value_bytes[index]; i < bytes; i++) {
        const bool is_top = t->format <= LIL_BF16 && i % width == width - 1;
        values[i] = (uint8_t)(is_top ? 0x3B + below(5) + (below(2) << 7) : below(256)); /* mostly of a usual size */
    }
    d->value_bytes[index] = bytes;
    if (t->format <= LIL_BF16) {
        clean_floats(t, values, bytes, is_scale);
    } else if (t->layout == LIL_ROWS) {
        for (size_t row = 0; row < t->rows; row++) {
            clean_row(values + row * (bytes / t->rows), t->format, t->cols);
        }
    } else {
        clean_grid(t, values);
    }
}
