/* linear and linear_add: int8 activations times coded weights, exact int32 sums, then scales, bias and what follows. */
#include "lil_kernels.h"
#include "lil_math.h"

enum { TILE_N = 16, BLOCK_K = 8, BLOCK_R = 8 }; /* weights are decoded 16 x 8 at a time: two tiles of the file */

/* The levels of tiles 2 * pair and 2 * pair + 1 of the block at `codes`, inputs first: w[k][n]. */
static void decode_tiles(const uint8_t *restrict codes, size_t pair, uint16_t format, int16_t w[BLOCK_K][TILE_N]) {
    if (format == LIL_INT8) {
        for (size_t k = 0; k < BLOCK_K; k++) {
            for (size_t n = 0; n < TILE_N; n++) {
                w[k][n] = lil_level_8bit(codes[64 * (k / 4) + 4 * n + k % 4]);
            }
        }
    } else if (lil_code_bits(format) == 6) {
        const int8_t *restrict levels = lil_levels_of(format);
        const uint8_t *restrict lower = codes + 64 * pair, *restrict upper = codes + 128;
        for (size_t k = 0; k < 4; k++) {
            for (size_t n = 0; n < TILE_N; n++) {
                const uint8_t low = lower[4 * n + k], high = upper[4 * n + k] >> 4 * pair;
                w[k][n] = levels[(low & 15) | (high & 3) << 4];
                w[k + 4][n] = levels[low >> 4 | (high & 12) << 2];
            }
        }
    } else {
        const int8_t *restrict levels = lil_levels_of(format);
        for (size_t k = 0; k < 4; k++) {
            for (size_t n = 0; n < TILE_N; n++) {
                const uint8_t both = codes[4 * n + k];
                w[k][n] = levels[both & 15];
                w[k + 4][n] = levels[both >> 4];
            }
        }
    }
}

/* Add to acc[r][n] the products of the block at `codes`, whose inputs begin at `k`, with `rows` (1..BLOCK_R) rows of
 * activations, `padded_k` apart. A 6-bit block may reach past the activations: those inputs are padding. */
static void add_block(const int8_t *restrict x, size_t rows, size_t padded_k, size_t k, const uint8_t *restrict codes,
                      uint16_t format, int32_t acc[BLOCK_R][TILE_N]) {
    const size_t num_pairs = lil_block_cols(format) / BLOCK_K;
    for (size_t pair = 0; pair < num_pairs && k < padded_k; pair++, k += BLOCK_K) {
        int16_t w[BLOCK_K][TILE_N];
        decode_tiles(codes, pair, format, w);
        for (size_t r = 0; r < rows; r++) {
            int32_t sum[TILE_N]; /* a local, so that it stays in registers */
            memcpy(sum, acc[r], sizeof sum);
            for (size_t i = 0; i < BLOCK_K; i++) {
                const int16_t level = x[r * padded_k + k + i];
                for (size_t n = 0; n < TILE_N; n++) {
                    sum[n] += level * w[i][n];
                }
            }
            memcpy(acc[r], sum, sizeof sum);
        }
    }
}

/* acc[r][n] = sum over k of x[r][k] * w[n][k] for the 16 outputs of block row `block_row`. */
static void product_block(const int8_t *restrict x, size_t rows, size_t padded_k, const lil_constant *codes,
                          size_t block_row, int32_t acc[BLOCK_R][TILE_N]) {
    const size_t width = lil_block_cols(codes->format), block_bytes = lil_block_bytes(codes->format);
    memset(acc, 0, BLOCK_R * sizeof acc[0]);
    if (codes->layout == LIL_TILES) {
        const uint8_t *block = codes->data + block_row * ((padded_k + width - 1) / width) * block_bytes;
        for (size_t k = 0; k < padded_k; k += width, block += block_bytes) {
            add_block(x, rows, padded_k, k, block, codes->format, acc);
        }
    } else { /* LIL_BLOCKS: what is not stored is zero */
        const lil_blocks stored = lil_blocks_of(codes);
        size_t i, end;
        for (lil_block_range(&stored, block_row, &i, &end); i < end; i++) {
            const size_t k = lil_u16_at(stored.columns, i) * width; /* add_block does nothing where it is too large */
            add_block(x, rows, padded_k, k, stored.codes + i * block_bytes, codes->format, acc);
        }
    }
}

/* y[n] is output n0 + n of one row, for n < count; so is residual[n], for FINISH_ADD only. */
static void finish_row(const lil_call *call, finish how, const int32_t acc[TILE_N], size_t n0, size_t count,
                       float row_scale, const float *restrict residual, float *restrict y) {
    const uint8_t *scale = call->tensor[1].data, *bias = call->tensor[2].data;
    for (size_t n = 0; n < count; n++) {
        const float scaled = ((float)acc[n] * lil_bf16_at(scale, n0 + n)) * row_scale;
        const float value = scaled + lil_bf16_at(bias, n0 + n);
        switch ((int)how) {
        case FINISH_LEVELS: /* with activation `none` */
        case FINISH_NONE: y[n] = value; break;
        case FINISH_RELU: y[n] = lil_relu(value); break;
        case FINISH_GELU: y[n] = lil_gelu(value); break;
        case FINISH_GELU_TANH: y[n] = lil_gelu_tanh(value); break;
        case FINISH_TANH: y[n] = lil_tanh(value); break;
        case FINISH_ADD: y[n] = value + residual[n]; break;
        case FINISH_LEVELS | FINISH_RELU: y[n] = lil_relu(value); break;
        case FINISH_LEVELS | FINISH_GELU: y[n] = lil_coarse_gelu(&LIL_GELU_LINES, value); break;
        case FINISH_LEVELS | FINISH_GELU_TANH: y[n] = lil_coarse_gelu(&LIL_GELU_TANH_LINES, value); break;
        }
    }
}

static void linear(const lil_call *call, const lil_part *part, finish how) {
    const size_t padded_k = call->in[0].cols, outputs = call->tensor[0].rows, padded_n = call->out[0].cols;
    const int8_t *x = call->in[0].data;
    const float *row_scales = call->in[1].data == call->in[0].data ? NULL : call->in[1].data;
    const float *residual = how == FINISH_ADD ? call->in[2].data : NULL;
    float *y = how & FINISH_LEVELS ? NULL : call->out[0].data;
    int8_t *levels = call->out[0].data;
    const float limit = lil_largest_level(call->a[1]); /* of levels */
    for (size_t r0 = part->begin; r0 < part->end; r0 += BLOCK_R) {
        const size_t block_rows = part->end - r0 < BLOCK_R ? part->end - r0 : BLOCK_R;
        for (size_t n0 = 0; n0 < outputs; n0 += TILE_N) {
            const size_t count = outputs - n0 < TILE_N ? outputs - n0 : TILE_N;
            int32_t acc[BLOCK_R][TILE_N];
            product_block(x + r0 * padded_k, block_rows, padded_k, &call->tensor[0], n0 / TILE_N, acc);
            for (size_t r = r0; r < r0 + block_rows; r++) {
                float value[TILE_N], *row = y == NULL ? value : y + r * outputs + n0;
                finish_row(call, how, acc[r - r0], n0, count, row_scales == NULL ? 1.0f : row_scales[r],
                           residual == NULL ? NULL : residual + r * outputs + n0, row);
                for (size_t n = 0; n < count && y == NULL; n++) {
                    const float multiplier = lil_bf16_at(call->tensor[3].data, n0 + n);
                    levels[r * padded_n + n0 + n] = lil_static_level(row[n], multiplier, limit);
                }
            }
        }
        for (size_t r = r0; r < r0 + block_rows && y == NULL; r++) {
            memset(levels + r * padded_n + outputs, 0, padded_n - outputs);
        }
    }
}

void lil_op_linear(const lil_call *call, const lil_part *part) {
    linear(call, part, (finish)call->a[0]);
}

void lil_op_linear_add(const lil_call *call, const lil_part *part) {
    linear(call, part, FINISH_ADD);
}

void lil_op_linear_levels(const lil_call *call, const lil_part *part) {
    linear(call, part, (finish)(call->a[0] | FINISH_LEVELS));
}
