/* Sixteen lanes of NEON: four registers of four. The words, and what they mean, are those of simd_lanes_avx512.h.
 * Internal; NEON_DOT is 1 where there are dot product instructions, else 0. */
#ifndef LIL_SIMD_LANES_H
#define LIL_SIMD_LANES_H

#include <arm_neon.h>

#include "lil_kernels.h"

#define LIL_INLINE static inline __attribute__((always_inline))
#define LIL_OUTLINE static __attribute__((noinline, unused)) /* rest of rows: many branches, and used in many places */

typedef struct lanes {
    float32x4_t val[4];
} lanes;
typedef struct lanes_i32 {
    int32x4_t val[4];
} lanes_i32;

/* How many keys and queries attention takes together: what 32 registers hold. */
#define LIL_KEYS 4
#define LIL_MIXED 4
#define LIL_SLICES 1

/* Return four registers, each made by `expression` of `i`. Written out, with constants: compilers that leave such a
 * loop as it is would put the registers into memory. */
#define LANES_EACH(type, expression)                                                                                  \
    type each;                                                                                                        \
    {                                                                                                                 \
        enum { i = 0 };                                                                                               \
        each.val[i] = (expression);                                                                                   \
    }                                                                                                                 \
    {                                                                                                                 \
        enum { i = 1 };                                                                                               \
        each.val[i] = (expression);                                                                                   \
    }                                                                                                                 \
    {                                                                                                                 \
        enum { i = 2 };                                                                                               \
        each.val[i] = (expression);                                                                                   \
    }                                                                                                                 \
    {                                                                                                                 \
        enum { i = 3 };                                                                                               \
        each.val[i] = (expression);                                                                                   \
    }                                                                                                                 \
    return each

/* Loads and stores; `_part` ones touch only the first n (0..16) elements, and load 0 into the other lanes. */
LIL_INLINE lanes lanes_load(const float *p) {
    LANES_EACH(lanes, vld1q_f32(p + 4 * i));
}
LIL_INLINE void lanes_store(float *p, lanes x) {
    vst1q_f32(p, x.val[0]);
    vst1q_f32(p + 4, x.val[1]);
    vst1q_f32(p + 8, x.val[2]);
    vst1q_f32(p + 12, x.val[3]);
}
/* Register i of them. */
LIL_INLINE float32x4_t lanes_load_some(const float *p, size_t n, size_t i) {
    const float32x2_t none = vdup_n_f32(0.0f);
    if (n >= 4 * i + 4) {
        return vld1q_f32(p + 4 * i);
    }
    switch (n > 4 * i ? n - 4 * i : 0) {
    case 1: return vcombine_f32(vld1_lane_f32(p + 4 * i, none, 0), none);
    case 2: return vcombine_f32(vld1_f32(p + 4 * i), none);
    case 3: return vcombine_f32(vld1_f32(p + 4 * i), vld1_lane_f32(p + 4 * i + 2, none, 0));
    default: return vcombine_f32(none, none);
    }
}
LIL_INLINE void lanes_store_some(float *p, float32x4_t x, size_t n, size_t i) {
    if (n >= 4 * i + 4) {
        vst1q_f32(p + 4 * i, x);
        return;
    }
    switch (n > 4 * i ? n - 4 * i : 0) {
    case 3: vst1q_lane_f32(p + 4 * i + 2, x, 2); /* fall through */
    case 2: vst1_f32(p + 4 * i, vget_low_f32(x)); break;
    case 1: vst1q_lane_f32(p + 4 * i, x, 0); break;
    default: break;
    }
}
LIL_OUTLINE lanes lanes_load_part(const float *p, size_t n) {
    LANES_EACH(lanes, lanes_load_some(p, n, i));
}
LIL_OUTLINE void lanes_store_part(float *p, lanes x, size_t n) {
    lanes_store_some(p, x.val[0], n, 0);
    lanes_store_some(p, x.val[1], n, 1);
    lanes_store_some(p, x.val[2], n, 2);
    lanes_store_some(p, x.val[3], n, 3);
}
LIL_INLINE lanes_i32 lanes_i32_load(const int32_t *p) {
    LANES_EACH(lanes_i32, vld1q_s32(p + 4 * i));
}

LIL_INLINE lanes lanes_set(float x) {
    LANES_EACH(lanes, vdupq_n_f32(x));
}
LIL_INLINE lanes lanes_zero(void) {
    return lanes_set(0.0f);
}
LIL_INLINE lanes lanes_add(lanes a, lanes b) {
    LANES_EACH(lanes, vaddq_f32(a.val[i], b.val[i]));
}
LIL_INLINE lanes lanes_sub(lanes a, lanes b) {
    LANES_EACH(lanes, vsubq_f32(a.val[i], b.val[i]));
}
LIL_INLINE lanes lanes_mul(lanes a, lanes b) {
    LANES_EACH(lanes, vmulq_f32(a.val[i], b.val[i]));
}
LIL_INLINE lanes lanes_div(lanes a, lanes b) {
    LANES_EACH(lanes, vdivq_f32(a.val[i], b.val[i]));
}
/* a > b ? a : b, and a < b ? a : b: where either is NaN, b. (vmaxq would give NaN, vmaxnmq the other.) */
LIL_INLINE lanes lanes_max(lanes a, lanes b) {
    LANES_EACH(lanes, vbslq_f32(vcgtq_f32(a.val[i], b.val[i]), a.val[i], b.val[i]));
}
LIL_INLINE lanes lanes_min(lanes a, lanes b) {
    LANES_EACH(lanes, vbslq_f32(vcltq_f32(a.val[i], b.val[i]), a.val[i], b.val[i]));
}
LIL_INLINE lanes lanes_abs(lanes x) {
    LANES_EACH(lanes, vabsq_f32(x.val[i]));
}
LIL_INLINE float32x4_t lanes_where(uint32x4_t mask, float32x4_t x) {
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x)));
}
/* x in the lanes where a >= b, else +0. */
LIL_INLINE lanes lanes_where_ge(lanes a, lanes b, lanes x) {
    LANES_EACH(lanes, lanes_where(vcgeq_f32(a.val[i], b.val[i]), x.val[i]));
}

LIL_INLINE uint32x4_t lanes_numbers_below(uint32_t first, uint32_t n) {
    static const uint32_t numbers[4] = {0, 1, 2, 3};
    return vcltq_u32(vaddq_u32(vld1q_u32(numbers), vdupq_n_u32(first)), vdupq_n_u32(n));
}
/* The first n lanes of a, the others of b; all of a for n >= 16. */
LIL_INLINE lanes lanes_first(lanes a, lanes b, size_t n) {
    const uint32_t count = n < 16 ? (uint32_t)n : 16;
    LANES_EACH(lanes, vbslq_f32(lanes_numbers_below(4 * i, count), a.val[i], b.val[i]));
}

LIL_INLINE lanes lanes_sqrt(lanes x) {
    LANES_EACH(lanes, vsqrtq_f32(x.val[i]));
}
/* The larger magnitude, |a| or |b|; NaN never wins. */
LIL_INLINE lanes lanes_max_abs(lanes a, lanes b) {
    LANES_EACH(lanes, vmaxnmq_f32(vabsq_f32(a.val[i]), vabsq_f32(b.val[i])));
}

/* The steps of the format's tree: lanes j and j + 8, then j + 4, of one vector; then j + 2 and j + 1 of four. */
LIL_INLINE float32x4_t lanes_fours_sum(lanes x) {
    return vaddq_f32(vaddq_f32(x.val[0], x.val[2]), vaddq_f32(x.val[1], x.val[3]));
}
LIL_INLINE float32x4_t lanes_twos_sum(float32x4_t a, float32x4_t b) {
    const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(x, y)), vreinterpretq_f32_f64(vzip2q_f64(x, y)));
}
LIL_INLINE float32x4_t lanes_tree4(const lanes x[4]) {
    const float32x4_t low = lanes_twos_sum(lanes_fours_sum(x[0]), lanes_fours_sum(x[1]));
    const float32x4_t high = lanes_twos_sum(lanes_fours_sum(x[2]), lanes_fours_sum(x[3]));
    return vpaddq_f32(low, high);
}
/* Lane r: the format's tree over x[r]. */
LIL_INLINE lanes lanes_tree16(const lanes x[16]) {
    LANES_EACH(lanes, lanes_tree4(x + 4 * i));
}

LIL_INLINE float32x4_t lanes_fours_largest(lanes x) {
    return vmaxq_f32(vmaxq_f32(x.val[0], x.val[1]), vmaxq_f32(x.val[2], x.val[3]));
}
LIL_INLINE float32x4_t lanes_largest4(const lanes x[4]) {
    const float32x4_t low = vpmaxq_f32(lanes_fours_largest(x[0]), lanes_fours_largest(x[1]));
    const float32x4_t high = vpmaxq_f32(lanes_fours_largest(x[2]), lanes_fours_largest(x[3]));
    return vpmaxq_f32(low, high);
}
/* Lane r: the largest lane of x[r], none of which is NaN. */
LIL_INLINE lanes lanes_largest16(const lanes x[16]) {
    LANES_EACH(lanes, lanes_largest4(x + 4 * i));
}

/* The largest lane; none is NaN, or all are. */
LIL_INLINE float lanes_largest(lanes x) {
    return vmaxvq_f32(lanes_fours_largest(x));
}

/* Each lane to an integer: half to even, and towards zero. All are within int32. */
LIL_INLINE lanes_i32 lanes_round(lanes x) {
    LANES_EACH(lanes_i32, vcvtnq_s32_f32(x.val[i]));
}
LIL_INLINE lanes_i32 lanes_truncate(lanes x) {
    LANES_EACH(lanes_i32, vcvtq_s32_f32(x.val[i]));
}
LIL_INLINE lanes lanes_from_i32(lanes_i32 x) {
    LANES_EACH(lanes, vcvtq_f32_s32(x.val[i]));
}
/* A table instruction sees 64 bytes; beyond them it gives 0 (tbl), or leaves what was (tbx). */
LIL_INLINE float32x4_t lanes_look_up_4(uint8x16x4_t lower, uint8x16x4_t upper, int32x4_t k) {
    const uint32x4_t first = vmulq_n_u32(vreinterpretq_u32_s32(k), 0x04040404u); /* byte 4 k, four times */
    const uint8x16_t at = vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x03020100u)));
    const uint8x16_t found = vqtbl4q_u8(lower, at);
    return vreinterpretq_f32_u8(vqtbx4q_u8(found, upper, vsubq_u8(at, vdupq_n_u8(64))));
}
/* table[k] of 32, for each lane. */
LIL_INLINE lanes lanes_look_up(const float table[32], lanes_i32 k) {
    const uint8_t *bytes = (const uint8_t *)table;
    const uint8x16x4_t lower = vld1q_u8_x4(bytes), upper = vld1q_u8_x4(bytes + 64);
    LANES_EACH(lanes, lanes_look_up_4(lower, upper, k.val[i]));
}

/* Bytes, bf16 and codes to lanes; int32 lanes to bytes. */
LIL_INLINE lanes lanes_from_u8(const uint8_t *p) {
    const uint8x16_t x = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_high_u8(x);
    return (lanes){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low)),
                    vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_high_u16(high))}};
}
LIL_INLINE float32x4_t lanes_from_upper(const uint8_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
LIL_INLINE lanes lanes_from_bf16(const uint8_t *p) {
    LANES_EACH(lanes, lanes_from_upper(p + 8 * i));
}
LIL_INLINE lanes lanes_from_bf16_part(const uint8_t *p, size_t n) {
    uint8_t copy[32] = {0};
    memcpy(copy, p, n < 16 ? 2 * n : 32);
    return lanes_from_bf16(copy);
}
LIL_INLINE lanes lanes_from_levels(int8x16_t x) {
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
    return (lanes){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
LIL_INLINE lanes lanes_from_i8(const int8_t *p) {
    return lanes_from_levels(vld1q_s8(p));
}
/* Levels of the 16 codes of 4 bits in the 8 bytes at p, the low nibble first. */
LIL_INLINE lanes lanes_from_codes4(const uint8_t *p, const int8_t levels[16]) {
    const uint8x8_t pairs = vld1_u8(p);
    const uint8x8x2_t codes = vzip_u8(vand_u8(pairs, vdup_n_u8(15)), vshr_n_u8(pairs, 4));
    return lanes_from_levels(vqtbl1q_s8(vld1q_s8(levels), vcombine_u8(codes.val[0], codes.val[1])));
}
LIL_INLINE int8x16_t lanes_lowest_bytes(lanes_i32 x) {
    const int16x8_t low = vmovn_high_s32(vmovn_s32(x.val[0]), x.val[1]);
    const int16x8_t high = vmovn_high_s32(vmovn_s32(x.val[2]), x.val[3]);
    return vmovn_high_s16(vmovn_s16(low), high);
}
/* The lowest byte of each lane. */
LIL_INLINE void lanes_i32_store_i8(int8_t *p, lanes_i32 x) {
    vst1q_s8(p, lanes_lowest_bytes(x));
}
LIL_INLINE void lanes_i32_store_i8_part(int8_t *p, lanes_i32 x, size_t n) {
    int8_t copy[16];
    lanes_i32_store_i8(copy, x);
    memcpy(p, copy, n < 16 ? n : 16);
}

/* The same for four vectors of levels -127..127: 64 bytes. */
LIL_INLINE void lanes_i32_store_i8x4(int8_t *p, const lanes_i32 x[4]) {
    lanes_i32_store_i8(p, x[0]);
    lanes_i32_store_i8(p + 16, x[1]);
    lanes_i32_store_i8(p + 32, x[2]);
    lanes_i32_store_i8(p + 48, x[3]);
}
/* A table instruction sees 64 bytes, and leaves alone (tbx) what is beyond them. */
LIL_INLINE uint8x16_t lanes_weights_of(uint8x16_t at) {
    uint8x16_t found = vqtbl4q_u8(vld1q_u8_x4(lil_weights), at);
    found = vqtbx4q_u8(found, vld1q_u8_x4(lil_weights + 64), vsubq_u8(at, vdupq_n_u8(64)));
    found = vqtbx4q_u8(found, vld1q_u8_x4(lil_weights + 128), vsubq_u8(at, vdupq_n_u8(128)));
    return vqtbx4q_u8(found, vld1q_u8_x4(lil_weights + 192), vsubq_u8(at, vdupq_n_u8(192)));
}
/* The weights of four vectors of 0..255, as 64 bytes; gives `sum` and, in some lanes, what they add up to. */
LIL_INLINE lanes_i32 lanes_store_weights(uint8_t *p, const lanes_i32 t[4], lanes_i32 sum) {
    for (size_t i = 0; i < 4; i++) {
        const uint8x16_t weights = lanes_weights_of(vreinterpretq_u8_s8(lanes_lowest_bytes(t[i])));
        vst1q_u8(p + 16 * i, weights);
        sum.val[i] = vreinterpretq_s32_u32(vpadalq_u16(vreinterpretq_u32_s32(sum.val[i]), vpaddlq_u8(weights)));
    }
    return sum;
}
LIL_INLINE int8x16_t lanes_fours(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    return vreinterpretq_s8_s32(vsliq_n_s32(vsliq_n_s32(vsliq_n_s32(a, b, 8), c, 16), d, 24));
}
/* Byte k of lane i: the lowest byte of lane i of x[k]. */
LIL_INLINE void lanes_i32_store_fours(int8_t *p, const lanes_i32 x[4]) {
    vst1q_s8(p, lanes_fours(x[0].val[0], x[1].val[0], x[2].val[0], x[3].val[0]));
    vst1q_s8(p + 16, lanes_fours(x[0].val[1], x[1].val[1], x[2].val[1], x[3].val[1]));
    vst1q_s8(p + 32, lanes_fours(x[0].val[2], x[1].val[2], x[2].val[2], x[3].val[2]));
    vst1q_s8(p + 48, lanes_fours(x[0].val[3], x[1].val[3], x[2].val[3], x[3].val[3]));
}

LIL_INLINE void lanes_i32_store(int32_t *p, lanes_i32 x) {
    vst1q_s32(p, x.val[0]);
    vst1q_s32(p + 4, x.val[1]);
    vst1q_s32(p + 8, x.val[2]);
    vst1q_s32(p + 12, x.val[3]);
}
LIL_INLINE lanes_i32 lanes_i32_set(int32_t x) {
    LANES_EACH(lanes_i32, vdupq_n_s32(x));
}
LIL_INLINE lanes_i32 lanes_i32_add(lanes_i32 a, lanes_i32 b) {
    LANES_EACH(lanes_i32, vaddq_s32(a.val[i], b.val[i]));
}

/* A tile: levels [16 rows][4 dims], to be multiplied by four others, one row a lane. Here both sides are signed. */
typedef struct lanes_tile {
    int8x16_t val[4];
} lanes_tile;
#define LIL_OFFSET 0
LIL_INLINE lanes_tile lanes_plain_tile(const int8_t *p) {
    LANES_EACH(lanes_tile, vld1q_s8(p + 16 * i));
}
LIL_INLINE lanes_tile lanes_offset_tile(const int8_t *p) {
    return lanes_plain_tile(p);
}
/* Four levels, four times. */
LIL_INLINE int8x16_t lanes_repeat_four(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
#if NEON_DOT && (defined(__ARM_FEATURE_DOTPROD) || !defined(__clang__))
#define LANES_SDOT(acc, a, b) vdotq_s32(acc, a, b)
#define LANES_SDOT_LANE(acc, a, b, lane) vdotq_lane_s32(acc, a, b, lane)
#elif NEON_DOT /* clang has the intrinsics only where the whole file is compiled for such processors */
LIL_INLINE int32x4_t lanes_sdot(int32x4_t acc, int8x16_t a, int8x16_t b) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(a), "w"(b));
    return acc;
}
LIL_INLINE int32x4_t lanes_sdot_0(int32x4_t acc, int8x16_t a, int8x8_t b) {
    __asm__("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(acc) : "w"(a), "w"(b));
    return acc;
}
LIL_INLINE int32x4_t lanes_sdot_1(int32x4_t acc, int8x16_t a, int8x8_t b) {
    __asm__("sdot %0.4s, %1.16b, %2.4b[1]" : "+w"(acc) : "w"(a), "w"(b));
    return acc;
}
#define LANES_SDOT(acc, a, b) lanes_sdot(acc, a, b)
#define LANES_SDOT_LANE(acc, a, b, lane) lanes_sdot_##lane(acc, a, b)
#endif

/* acc + four products a lane. Without the instruction they are added to pairs in 16 bits: 2 * 127 * 127 < 2^15. */
LIL_INLINE int32x4_t lanes_dot(int32x4_t acc, int8x16_t a, int8x16_t b) {
#if NEON_DOT
    return LANES_SDOT(acc, a, b);
#else
    return vpadalq_s16(acc, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));
#endif
}
LIL_INLINE lanes_i32 lanes_dot_levels(lanes_i32 acc, lanes_tile tile, const int8_t *four) {
    const int8x16_t repeated = lanes_repeat_four(four);
    LANES_EACH(lanes_i32, lanes_dot(acc.val[i], tile.val[i], repeated));
}
LIL_INLINE lanes_i32 lanes_dot_weights(lanes_i32 acc, lanes_tile tile, const int8_t *four) {
    return lanes_dot_levels(acc, tile, four);
}

/* Levels [16 rows][16 dims] as four tiles: of four rows at a time, each row's four dims move as one word. */
LIL_INLINE void lanes_store_tiles(int8_t *tiles, const lanes_i32 x[16]) {
    LIL_UNROLL
    for (int r = 0; r < 16; r += 4, tiles += 16) {
        const int32x4_t a = vreinterpretq_s32_s8(lanes_lowest_bytes(x[r]));
        const int32x4_t b = vreinterpretq_s32_s8(lanes_lowest_bytes(x[r + 1]));
        const int32x4_t c = vreinterpretq_s32_s8(lanes_lowest_bytes(x[r + 2]));
        const int32x4_t d = vreinterpretq_s32_s8(lanes_lowest_bytes(x[r + 3]));
        const int32x4_t ac_low = vzip1q_s32(a, c), ac_high = vzip2q_s32(a, c);
        const int32x4_t bd_low = vzip1q_s32(b, d), bd_high = vzip2q_s32(b, d);
        vst1q_s8(tiles, vreinterpretq_s8_s32(vzip1q_s32(ac_low, bd_low)));
        vst1q_s8(tiles + 64, vreinterpretq_s8_s32(vzip2q_s32(ac_low, bd_low)));
        vst1q_s8(tiles + 128, vreinterpretq_s8_s32(vzip1q_s32(ac_high, bd_high)));
        vst1q_s8(tiles + 192, vreinterpretq_s8_s32(vzip2q_s32(ac_high, bd_high)));
    }
}

#endif
