/* unfold: each window of an image becomes one row; outside the image is 0. */
#include "lil_kernels.h"

/* One window, whose first pixel is (top, left) of the padded image. */
static void unfold_window(const lil_call *call, size_t top, size_t left, float *restrict y) {
    const float *restrict x = call->in[0].data;
    const size_t channels = call->in[0].cols;
    const size_t height = call->a[0], width = call->a[1], kernel = call->a[2], padding = call->a[4];
    for (size_t ky = 0; ky < kernel; ky++) {
        for (size_t kx = 0; kx < kernel; kx++, y += channels) {
            const size_t row = top + ky - padding, col = left + kx - padding; /* before the image: wraps to huge */
            if (row < height && col < width) {
                memcpy(y, x + (row * width + col) * channels, channels * sizeof *y);
            } else {
                memset(y, 0, channels * sizeof *y);
            }
        }
    }
}

void lil_op_unfold(const lil_call *call) {
    const size_t height = call->a[0], width = call->a[1];
    const size_t kernel = call->a[2], stride = call->a[3], padding = call->a[4];
    const size_t out_height = (height + 2 * padding - kernel) / stride + 1;
    const size_t out_width = (width + 2 * padding - kernel) / stride + 1;
    float *y = call->out[0].data;
    for (size_t oy = 0; oy < out_height; oy++) {
        for (size_t ox = 0; ox < out_width; ox++, y += call->out[0].cols) {
            unfold_window(call, oy * stride, ox * stride, y);
        }
    }
}
