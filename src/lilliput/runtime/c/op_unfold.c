/* unfold: each window of an image becomes one row; outside the image is 0. */
#include "lil_kernels.h"

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* One window, whose first pixel is (top, left) of the padded image. */
static void unfold_window(const lil_call *call, size_t top, size_t left, float *restrict y) {
    const float *restrict x = call->in[0].data;
    const size_t channels = call->in[0].cols;
    const size_t height = call->a[0], width = call->a[1], kernel = call->a[2], padding = call->a[4];
    /* The columns of the window that lie in the image: [first, last). */
    const size_t first = left < padding ? smaller(padding - left, kernel) : 0;
    const size_t last = left + kernel <= width + padding ? kernel : width + padding - left;
    const size_t inside = last > first ? (last - first) * channels : 0;
    for (size_t ky = 0; ky < kernel; ky++, y += kernel * channels) {
        const size_t row = top + ky - padding; /* above the image: wraps to huge */
        if (row >= height || inside == 0) {
            memset(y, 0, kernel * channels * sizeof *y);
            continue;
        }
        memset(y, 0, first * channels * sizeof *y);
        memcpy(y + first * channels, x + (row * width + left + first - padding) * channels, inside * sizeof *y);
        memset(y + last * channels, 0, (kernel - last) * channels * sizeof *y);
    }
}

void lil_op_unfold(const lil_call *call, const lil_part *part) {
    const size_t width = call->a[1], kernel = call->a[2], stride = call->a[3], padding = call->a[4];
    const size_t out_width = (width + 2 * padding - kernel) / stride + 1;
    float *y = (float *)call->out[0].data + part->begin * call->out[0].cols;
    for (size_t window = part->begin; window < part->end; window++, y += call->out[0].cols) {
        unfold_window(call, window / out_width * stride, window % out_width * stride, y);
    }
}
