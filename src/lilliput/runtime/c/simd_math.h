/* The activations on sixteen lanes. Internal; each equals its scalar twin of lil_math.h bit for bit. */
#ifndef LIL_SIMD_MATH_H
#define LIL_SIMD_MATH_H

#include "lil_math.h"

#ifndef LIL_SIMD_LANES_H
#error "include one simd_lanes_*.h first"
#endif

/* Levels whose scale is a constant of the file: rint(clamp(x * multiplier, -limit, limit)). */
LIL_INLINE lanes_i32 lanes_static_levels(lanes x, lanes multiplier, float limit) {
    const lanes scaled = lanes_max(lanes_mul(x, multiplier), lanes_set(-limit)); /* NaN becomes -limit */
    return lanes_round(lanes_min(scaled, lanes_set(limit)));
}

LIL_INLINE lanes lanes_relu(lanes x) {
    return lanes_max(x, lanes_zero());
}

LIL_INLINE lanes lanes_piecewise(const lil_cubics *p, lanes x) {
    const lanes scaled = lanes_mul(lanes_abs(x), lanes_set(p->inverse_step));
    const lanes u = lanes_min(lanes_max(scaled, lanes_zero()), lanes_set(31.999998f));
    const lanes_i32 k = lanes_truncate(u);
    const lanes t = lanes_sub(u, lanes_from_i32(k));
#ifdef LIL_LOOK_UP_FOURS /* four values that lie together are faster to find than four times one */
    lanes c[4];
    lanes_look_up_fours(p->c, k, c);
#else
    const lanes c[4] = {lanes_look_up(p->c3, k), lanes_look_up(p->c2, k), lanes_look_up(p->c1, k),
                        lanes_look_up(p->c0, k)};
#endif
    return lanes_add(lanes_mul(lanes_add(lanes_mul(lanes_add(lanes_mul(c[0], t), c[1]), t), c[2]), t), c[3]);
}

LIL_INLINE lanes lanes_gelu(lanes x) {
    return lanes_sub(lanes_relu(x), lanes_piecewise(&LIL_GELU, x));
}

LIL_INLINE lanes lanes_gelu_tanh(lanes x) {
    return lanes_sub(lanes_relu(x), lanes_piecewise(&LIL_GELU_TANH, x));
}

/* Either gelu, where its levels are all that is wanted. */
LIL_INLINE lanes lanes_coarse_gelu(const lil_lines *p, lanes x) {
    const lanes a = lanes_min(lanes_abs(x), lanes_set(LIL_LINES_END)); /* NaN becomes the end */
    const lanes_i32 k = lanes_round(lanes_mul(a, lanes_set(LIL_LINES_STEPS)));
    const lanes h = lanes_add(lanes_mul(lanes_look_up(p->c1, k), a), lanes_look_up(p->c0, k));
    return lanes_sub(lanes_relu(x), h);
}

LIL_INLINE lanes lanes_tanh(lanes x) {
    const lanes y = lanes_sub(lanes_set(1.0f), lanes_piecewise(&LIL_TANH, x));
    return lanes_sub(lanes_where_ge(x, lanes_zero(), y), lanes_where_ge(lanes_zero(), x, y));
}

#endif
