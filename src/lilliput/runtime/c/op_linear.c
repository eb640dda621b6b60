/* linear and linear_add: int8 activations times coded weights, exact int32 sums, then scales, bias and what follows. */
#include "lil_kernels.h"
#include "lil_math.h"

enum { TILE_N = 16, BLOCK_K = 8, BLOCK_R = 8 }; /* one 16 x 8 block of weights is two tiles of the file */

/* What happens to a product's sum: activation(...) or ... + residual. */
typedef enum finish { FINISH_NONE, FINISH_RELU, FINISH_GELU, FINISH_ADD } finish;

/* The levels of the block at `codes` (128 bytes of 8-bit codes or 64 of 4-bit), inputs first: w[k][n]. */
static void decode_block(const uint8_t *restrict codes, uint16_t format, int16_t w[BLOCK_K][TILE_N]) {
    if (format == LIL_INT8) {
        for (size_t k = 0; k < BLOCK_K; k++) {
            for (size_t n = 0; n < TILE_N; n++) {
                w[k][n] = lil_level_8bit(codes[64 * (k / 4) + 4 * n + k % 4]);
            }
        }
        return;
    }
    const int8_t *restrict levels = lil_levels_4bit[format - LIL_INT4];
    for (size_t k = 0; k < 4; k++) {
        for (size_t n = 0; n < TILE_N; n++) {
            const uint8_t pair = codes[4 * n + k];
            w[k][n] = levels[pair & 15];
            w[k + 4][n] = levels[pair >> 4];
        }
    }
}

/* acc[r][n] = sum over k of x[r][k] * w[n][k] for `rows` (1..BLOCK_R) rows of activations, `padded_k` apart, and the 16
 * outputs whose tiles start at `codes`. */
static void product_block(const int8_t *restrict x, size_t rows, size_t padded_k, const uint8_t *restrict codes,
                          uint16_t format, int32_t acc[BLOCK_R][TILE_N]) {
    const size_t block_bytes = format == LIL_INT8 ? 128 : 64;
    memset(acc, 0, BLOCK_R * sizeof acc[0]);
    for (size_t k = 0; k < padded_k; k += BLOCK_K, codes += block_bytes) {
        int16_t w[BLOCK_K][TILE_N];
        decode_block(codes, format, w);
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

/* The outputs [n0, n0 + count) of one row. `residual` is that row's, for FINISH_ADD only. */
static void finish_row(const lil_call *call, finish how, const int32_t acc[TILE_N], size_t n0, size_t count,
                       float row_scale, const float *restrict residual, float *restrict y) {
    const uint8_t *scale = call->tensor[1].data, *bias = call->tensor[2].data;
    for (size_t n = 0; n < count; n++) {
        const float scaled = ((float)acc[n] * lil_bf16_at(scale, n0 + n)) * row_scale;
        const float value = scaled + lil_bf16_at(bias, n0 + n);
        switch (how) {
        case FINISH_NONE: y[n0 + n] = value; break;
        case FINISH_RELU: y[n0 + n] = lil_relu(value); break;
        case FINISH_GELU: y[n0 + n] = lil_gelu(value); break;
        case FINISH_ADD: y[n0 + n] = value + residual[n0 + n]; break;
        }
    }
}

static void linear(const lil_call *call, const lil_part *part, finish how, const float *residual) {
    const size_t padded_k = call->in[0].cols, outputs = call->tensor[0].rows;
    const uint16_t format = call->tensor[0].format;
    const int8_t *x = call->in[0].data;
    const float *row_scales = call->in[1].data;
    float *y = call->out[0].data;
    const size_t tile_row_bytes = TILE_N * padded_k / (format == LIL_INT8 ? 1 : 2);
    for (size_t r0 = part->begin; r0 < part->end; r0 += BLOCK_R) {
        const size_t block_rows = part->end - r0 < BLOCK_R ? part->end - r0 : BLOCK_R;
        const uint8_t *codes = call->tensor[0].data;
        for (size_t n0 = 0; n0 < outputs; n0 += TILE_N, codes += tile_row_bytes) {
            const size_t count = outputs - n0 < TILE_N ? outputs - n0 : TILE_N;
            int32_t acc[BLOCK_R][TILE_N];
            product_block(x + r0 * padded_k, block_rows, padded_k, codes, format, acc);
            for (size_t r = r0; r < r0 + block_rows; r++) {
                finish_row(call, how, acc[r - r0], n0, count, row_scales[r],
                           residual == NULL ? NULL : residual + r * outputs, y + r * outputs);
            }
        }
    }
}

void lil_op_linear(const lil_call *call, const lil_part *part) {
    static const finish activations[] = {FINISH_NONE, FINISH_RELU, FINISH_GELU};
    linear(call, part, activations[call->a[0]], NULL);
}

void lil_op_linear_add(const lil_call *call, const lil_part *part) {
    linear(call, part, FINISH_ADD, call->in[2].data);
}
