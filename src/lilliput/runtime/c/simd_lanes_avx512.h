/* Sixteen lanes of AVX-512. Internal: the vocabulary in which the simd_*.h kernels are written, which the files
 * simd_lanes_*.h give for each instruction set. `lanes` are 16 floats, the 16 lanes of the format's sums; `lanes_i32`
 * are 16 int32. Where NaN can come in, the order of the operands of max and min matters: see lanes_max. */
#ifndef LIL_SIMD_LANES_H
#define LIL_SIMD_LANES_H

#include <immintrin.h>

#include "lil_kernels.h"

#define LIL_INLINE static inline __attribute__((always_inline))

typedef __m512 lanes;
typedef __m512i lanes_i32;

/* A mask of the first n lanes, all 16 for n >= 16. */
LIL_INLINE __mmask16 lanes_mask(size_t n) {
    return (__mmask16)(n >= 16 ? 0xFFFFu : (1u << n) - 1u);
}

/* Loads and stores; `_part` ones touch only the first n (0..16) elements, and load 0 into the other lanes. */
LIL_INLINE lanes lanes_load(const float *p) {
    return _mm512_loadu_ps(p);
}
LIL_INLINE lanes lanes_load_part(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps(lanes_mask(n), p);
}
LIL_INLINE void lanes_store(float *p, lanes x) {
    _mm512_storeu_ps(p, x);
}
LIL_INLINE void lanes_store_part(float *p, lanes x, size_t n) {
    _mm512_mask_storeu_ps(p, lanes_mask(n), x);
}
LIL_INLINE lanes_i32 lanes_i32_load(const int32_t *p) {
    return _mm512_loadu_si512(p);
}

LIL_INLINE lanes lanes_set(float x) {
    return _mm512_set1_ps(x);
}
LIL_INLINE lanes lanes_zero(void) {
    return _mm512_setzero_ps();
}
LIL_INLINE lanes lanes_add(lanes a, lanes b) {
    return _mm512_add_ps(a, b);
}
LIL_INLINE lanes lanes_sub(lanes a, lanes b) {
    return _mm512_sub_ps(a, b);
}
LIL_INLINE lanes lanes_mul(lanes a, lanes b) {
    return _mm512_mul_ps(a, b);
}
LIL_INLINE lanes lanes_div(lanes a, lanes b) {
    return _mm512_div_ps(a, b);
}
/* a > b ? a : b, and a < b ? a : b: where either is NaN, b. */
LIL_INLINE lanes lanes_max(lanes a, lanes b) {
    return _mm512_max_ps(a, b);
}
LIL_INLINE lanes lanes_min(lanes a, lanes b) {
    return _mm512_min_ps(a, b);
}
LIL_INLINE lanes lanes_abs(lanes x) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
}
/* The first n lanes of a (all for n >= 16), the others of b. */
LIL_INLINE lanes lanes_first(lanes a, lanes b, size_t n) {
    return _mm512_mask_mov_ps(b, lanes_mask(n), a);
}
/* x in the lanes where a >= b, else +0. */
LIL_INLINE lanes lanes_where_ge(lanes a, lanes b, lanes x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), x);
}

LIL_INLINE lanes lanes_sqrt(lanes x) {
    return _mm512_sqrt_ps(x);
}
/* The larger magnitude, |a| or |b|; NaN never wins. */
LIL_INLINE lanes lanes_max_abs(lanes a, lanes b) {
    return _mm512_range_ps(a, b, 0x0B);
}

/* One combining step of two vectors: their lanes j and j + 8 (4, 2, 1) together, both results in one vector. */
#define LIL_PAIR_8(op, a, b) op(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE))
#define LIL_PAIR_4(op, a, b) op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD))
#define LIL_PAIR_2(op, a, b) op(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE))
#define LIL_PAIR_1(op, a, b) op(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD))
/* The steps leave slot 4 * k + L in lane 4 * L + k: so slot s starts with vector 4 * (s % 4) + s / 4. */
#define LIL_REDUCE_16(op, x)                                                                                          \
    lanes eight[8], four[4], two[2];                                                                                  \
    LIL_UNROLL                                                                                                        \
    for (int s = 0; s < 16; s += 2) {                                                                                 \
        eight[s / 2] = LIL_PAIR_8(op, x[4 * (s % 4) + s / 4], x[4 * (s % 4) + 4 + s / 4]);                            \
    }                                                                                                                 \
    LIL_UNROLL                                                                                                        \
    for (int i = 0; i < 4; i++) {                                                                                     \
        four[i] = LIL_PAIR_4(op, eight[2 * i], eight[2 * i + 1]);                                                     \
    }                                                                                                                 \
    LIL_UNROLL                                                                                                        \
    for (int i = 0; i < 2; i++) {                                                                                     \
        two[i] = LIL_PAIR_2(op, four[2 * i], four[2 * i + 1]);                                                        \
    }                                                                                                                 \
    return LIL_PAIR_1(op, two[0], two[1])

/* Lane r: the format's tree over x[r]. */
LIL_INLINE lanes lanes_tree16(const lanes x[16]) {
    LIL_REDUCE_16(lanes_add, x);
}
/* Lane r: the largest lane of x[r], none of which is NaN. */
LIL_INLINE lanes lanes_largest16(const lanes x[16]) {
    LIL_REDUCE_16(lanes_max, x);
}

/* The largest lane; none is NaN, or all are. */
LIL_INLINE float lanes_largest(lanes x) {
    return _mm512_reduce_max_ps(x);
}

/* Each lane to an integer: half to even, and towards zero. All are within int32. */
LIL_INLINE lanes_i32 lanes_round(lanes x) {
    return _mm512_cvtps_epi32(x);
}
LIL_INLINE lanes_i32 lanes_truncate(lanes x) {
    return _mm512_cvttps_epi32(x);
}
LIL_INLINE lanes lanes_from_i32(lanes_i32 x) {
    return _mm512_cvtepi32_ps(x);
}
/* table[k] of 32, for each lane. */
LIL_INLINE lanes lanes_look_up(const float table[32], lanes_i32 k) {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), k, _mm512_loadu_ps(table + 16));
}

/* Bytes, bf16 and codes to lanes; int32 lanes to bytes. */
LIL_INLINE lanes lanes_from_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
LIL_INLINE lanes lanes_from_bf16(const uint8_t *p) {
    const __m256i upper = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}
LIL_INLINE lanes lanes_from_bf16_part(const uint8_t *p, size_t n) {
    const __m256i upper = _mm256_maskz_loadu_epi16(lanes_mask(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}
LIL_INLINE lanes lanes_from_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
/* Levels of the 16 codes of 4 bits in the 8 bytes at p, the low nibble first. */
LIL_INLINE lanes lanes_from_codes4(const uint8_t *p, const int8_t levels[16]) {
    const __m128i pairs = _mm_loadl_epi64((const __m128i *)(const void *)p), low = _mm_set1_epi8(15);
    const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(pairs, low), _mm_and_si128(_mm_srli_epi16(pairs, 4), low));
    const __m128i table = _mm_loadu_si128((const __m128i *)(const void *)levels);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_shuffle_epi8(table, codes)));
}
/* The lowest byte of each lane. */
LIL_INLINE void lanes_i32_store_i8(int8_t *p, lanes_i32 x) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(x));
}
LIL_INLINE void lanes_i32_store_i8_part(int8_t *p, lanes_i32 x, size_t n) {
    _mm512_mask_cvtepi32_storeu_epi8(p, lanes_mask(n), x);
}

/* The same for four vectors of levels -127..127: 64 bytes. */
LIL_INLINE void lanes_i32_store_i8x4(int8_t *p, const lanes_i32 x[4]) {
    const __m512i low = _mm512_packs_epi32(x[0], x[1]), high = _mm512_packs_epi32(x[2], x[3]);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high)));
}
/* Byte k of lane i: the lowest byte of lane i of x[k]. */
LIL_INLINE void lanes_i32_store_fours(int8_t *p, const lanes_i32 x[4]) {
    const __m512i byte = _mm512_set1_epi32(255);
    const __m512i two = _mm512_or_si512(_mm512_and_si512(x[0], byte),
                                        _mm512_slli_epi32(_mm512_and_si512(x[1], byte), 8));
    const __m512i three = _mm512_or_si512(two, _mm512_slli_epi32(_mm512_and_si512(x[2], byte), 16));
    _mm512_storeu_si512(p, _mm512_or_si512(three, _mm512_slli_epi32(x[3], 24)));
}

/* The weights of four vectors of 0..255, as 64 bytes; gives `sum` and, in some lanes, what they add up to. */
LIL_INLINE lanes_i32 lanes_store_weights(uint8_t *p, const lanes_i32 t[4], lanes_i32 sum) {
    const __m512i low = _mm512_packs_epi32(t[0], t[1]), high = _mm512_packs_epi32(t[2], t[3]);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i at = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
    const __m512i first = _mm512_permutex2var_epi8(_mm512_loadu_si512(lil_weights), at,
                                                   _mm512_loadu_si512(lil_weights + 64));
    const __m512i second = _mm512_permutex2var_epi8(_mm512_loadu_si512(lil_weights + 128), at,
                                                    _mm512_loadu_si512(lil_weights + 192));
    const __m512i weights = _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), first, second);
    _mm512_storeu_si512(p, weights);
    return _mm512_add_epi32(sum, _mm512_sad_epu8(weights, _mm512_setzero_si512()));
}

LIL_INLINE void lanes_i32_store(int32_t *p, lanes_i32 x) {
    _mm512_storeu_si512(p, x);
}
LIL_INLINE lanes_i32 lanes_i32_set(int32_t x) {
    return _mm512_set1_epi32(x);
}
LIL_INLINE lanes_i32 lanes_i32_add(lanes_i32 a, lanes_i32 b) {
    return _mm512_add_epi32(a, b);
}

LIL_INLINE lanes_i32 lanes_i32_sub(lanes_i32 a, lanes_i32 b) {
    return _mm512_sub_epi32(a, b);
}

/* Integer products of four bytes a lane, as assembly because compilers put copies of the accumulators between the
 * intrinsics. */
typedef int32_t __attribute__((aligned(1), may_alias)) lanes_four; /* four bytes anywhere */

LIL_INLINE lanes_i32 lanes_dpbusd(lanes_i32 acc, __m512i a, __m512i b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
LIL_INLINE lanes_i32 lanes_dpbusd_all(lanes_i32 acc, __m512i a, const void *four) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(a), "m"(*(const lanes_four *)four));
    return acc;
}

/* A tile: levels [16 rows][4 dims]. Two ways to multiply it, one row a lane:
 * by four levels -127..127: the instruction takes one operand unsigned, so LIL_OFFSET is added to the tile, and the
 * caller begins with -LIL_OFFSET times the sum of the other levels; */
typedef __m512i lanes_tile;
#define LIL_OFFSET 128
LIL_INLINE lanes_tile lanes_offset_tile(const int8_t *p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)LIL_OFFSET));
}
LIL_INLINE lanes_tile lanes_offset_of_zeros(void) {
    return _mm512_set1_epi8((char)LIL_OFFSET);
}
LIL_INLINE lanes_i32 lanes_dot_levels(lanes_i32 acc, lanes_tile tile, const int8_t *four) {
    return lanes_dpbusd_all(acc, tile, four);
}
/* by four weights 0..127. */
LIL_INLINE lanes_tile lanes_plain_tile(const int8_t *p) {
    return _mm512_loadu_si512(p);
}
LIL_INLINE lanes_i32 lanes_dot_weights(lanes_i32 acc, lanes_tile tile, const int8_t *four) {
    return lanes_dpbusd(acc, _mm512_set1_epi32(*(const lanes_four *)(const void *)four), tile);
}

/* Levels [16 rows][16 dims] as four tiles. */
LIL_INLINE void lanes_store_tiles(int8_t *tiles, const lanes_i32 x[16]) {
    __m512i packed[4]; /* 128-bit lane L of the k-th: dims 4 * L.. of rows 4 * k.. */
    LIL_UNROLL
    for (int k = 0; k < 4; k++) {
        const __m512i low = _mm512_packs_epi32(x[4 * k], x[4 * k + 1]);
        const __m512i high = _mm512_packs_epi32(x[4 * k + 2], x[4 * k + 3]);
        packed[k] = _mm512_packs_epi16(low, high);
    }
    const __m512i a = _mm512_shuffle_i32x4(packed[0], packed[1], 0x44); /* lanes 0 and 1 of both */
    const __m512i b = _mm512_shuffle_i32x4(packed[2], packed[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(packed[0], packed[1], 0xEE); /* lanes 2 and 3 */
    const __m512i d = _mm512_shuffle_i32x4(packed[2], packed[3], 0xEE);
    _mm512_storeu_si512(tiles, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(tiles + 64, _mm512_shuffle_i32x4(a, b, 0xDD));
    _mm512_storeu_si512(tiles + 128, _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_storeu_si512(tiles + 192, _mm512_shuffle_i32x4(c, d, 0xDD));
}

#endif
