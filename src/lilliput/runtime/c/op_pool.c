/* select_row and mean_rows: many tokens to one. */
#include "lil_kernels.h"

void lil_op_select_row(const lil_call *call, const lil_part *part) {
    (void)part; /* not divided */
    const size_t cols = call->in[0].cols;
    const float *x = call->in[0].data;
    memcpy(call->out[0].data, x + call->a[0] * cols, cols * sizeof *x);
}

void lil_op_mean_rows(const lil_call *call, const lil_part *part) {
    (void)part; /* not divided */
    const size_t rows = call->in[0].rows, cols = call->in[0].cols;
    const float *restrict x = call->in[0].data;
    float *restrict y = call->out[0].data;
    for (size_t c = 0; c < cols; c++) {
        y[c] = 0.0f;
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++) {
            y[c] += x[r * cols + c];
        }
    }
    for (size_t c = 0; c < cols; c++) {
        y[c] = y[c] / (float)rows; /* rows <= 2^24: exact */
    }
}
