/* normalize: pixels to floats, one scale and shift a channel. */
#include "lil_kernels.h"

void lil_op_normalize(const lil_call *call, const lil_part *part) {
    const size_t cols = call->in[0].cols;
    const uint8_t *restrict x = call->in[0].data;
    const uint8_t *restrict scale = call->tensor[0].data, *restrict shift = call->tensor[1].data;
    float *restrict y = call->out[0].data;
    for (size_t r = part->begin; r < part->end; r++) {
        for (size_t c = 0; c < cols; c++) {
            y[r * cols + c] = (float)x[r * cols + c] * lil_f32_at(scale, c) + lil_f32_at(shift, c);
        }
    }
}
