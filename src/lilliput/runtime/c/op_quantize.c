/* quantize: int8 levels and one scale a row. */
#include "lil_kernels.h"
#include "lil_math.h"

void lil_op_quantize(const lil_call *call) {
    const size_t rows = call->in[0].rows, cols = call->in[0].cols, padded = call->out[0].cols;
    const float *x = call->in[0].data;
    int8_t *q = call->out[0].data;
    float *restrict scale = call->out[1].data;
    for (size_t r = 0; r < rows; r++, x += cols, q += padded) {
        scale[r] = lil_quantize_row(x, cols, q);
        memset(q + cols, 0, padded - cols);
    }
}
