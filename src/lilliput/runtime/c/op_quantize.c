/* quantize: int8 levels and one scale a row. */
#include "lil_kernels.h"
#include "lil_math.h"

void lil_op_quantize(const lil_call *call, const lil_part *part) {
    const size_t cols = call->in[0].cols, padded = call->out[0].cols;
    const float *x = (const float *)call->in[0].data + part->begin * cols;
    int8_t *q = (int8_t *)call->out[0].data + part->begin * padded;
    float *restrict scale = call->out[1].data;
    const float limit = lil_largest_level(call->a[0]);
    for (size_t r = part->begin; r < part->end; r++, x += cols, q += padded) {
        scale[r] = lil_quantize_row(x, cols, limit, q);
        memset(q + cols, 0, padded - cols);
    }
}
