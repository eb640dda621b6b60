/* concat and neighbors: columns beside each other. */
#include "lil_kernels.h"

void lil_op_concat(const lil_call *call, const lil_part *part) {
    const size_t first = call->in[0].cols, second = call->in[1].cols;
    const float *a = call->in[0].data, *b = call->in[1].data;
    float *y = (float *)call->out[0].data + part->begin * (first + second);
    for (size_t r = part->begin; r < part->end; r++, y += first + second) {
        memcpy(y, a + r * first, first * sizeof *y);
        memcpy(y + first, b + r * second, second * sizeof *y);
    }
}

/* Row `r` of `rows`, or zeros where there is none; r = -1 wraps to huge. */
static void copy_row(const float *x, size_t rows, size_t cols, size_t r, float *y) {
    if (r < rows) {
        memcpy(y, x + r * cols, cols * sizeof *y);
    } else {
        memset(y, 0, cols * sizeof *y);
    }
}

void lil_op_neighbors(const lil_call *call, const lil_part *part) {
    const size_t rows = call->in[0].rows, cols = call->in[0].cols;
    const float *x = call->in[0].data;
    float *y = (float *)call->out[0].data + part->begin * 3 * cols;
    for (size_t r = part->begin; r < part->end; r++, y += 3 * cols) {
        copy_row(x, rows, cols, r + 1, y);
        copy_row(x, rows, cols, r, y + cols);
        copy_row(x, rows, cols, r - 1, y + 2 * cols);
    }
}
