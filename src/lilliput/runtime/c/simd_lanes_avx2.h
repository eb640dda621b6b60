/* Sixteen lanes of AVX2: two registers of eight. The words, and what they mean, are those of simd_lanes_avx512.h.
 * Internal. */
#ifndef LIL_SIMD_LANES_H
#define LIL_SIMD_LANES_H

#include <immintrin.h>
#include <string.h>

#include "lil_kernels.h"

#define LIL_INLINE static inline __attribute__((always_inline))

typedef struct lanes {
    __m256 low, high;
} lanes;
typedef struct lanes_i32 {
    __m256i low, high;
} lanes_i32;

#define LIL_KEYS 4
#define LIL_MIXED 4
#define LIL_SLICES 1

/* All ones in the first n (0..16) of 16 lanes. */
LIL_INLINE lanes_i32 lanes_mask(size_t n) {
    static const int32_t mask[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    const int32_t *p = mask + 16 - n;
    return (lanes_i32){_mm256_loadu_si256((const __m256i *)(const void *)p),
                       _mm256_loadu_si256((const __m256i *)(const void *)(p + 8))};
}

/* Loads and stores; `_part` ones touch only the first n (0..16) elements, and load 0 into the other lanes. */
LIL_INLINE lanes lanes_load(const float *p) {
    return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
LIL_INLINE lanes lanes_load_part(const float *p, size_t n) {
    const lanes_i32 mask = lanes_mask(n);
    return (lanes){_mm256_maskload_ps(p, mask.low), _mm256_maskload_ps(p + 8, mask.high)};
}
LIL_INLINE void lanes_store(float *p, lanes x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
LIL_INLINE void lanes_store_part(float *p, lanes x, size_t n) {
    const lanes_i32 mask = lanes_mask(n);
    _mm256_maskstore_ps(p, mask.low, x.low);
    _mm256_maskstore_ps(p + 8, mask.high, x.high);
}
LIL_INLINE lanes_i32 lanes_i32_load(const int32_t *p) {
    return (lanes_i32){_mm256_loadu_si256((const __m256i *)(const void *)p),
                       _mm256_loadu_si256((const __m256i *)(const void *)(p + 8))};
}
LIL_INLINE void lanes_i32_store(int32_t *p, lanes_i32 x) {
    _mm256_storeu_si256((__m256i *)(void *)p, x.low);
    _mm256_storeu_si256((__m256i *)(void *)(p + 8), x.high);
}
LIL_INLINE lanes_i32 lanes_i32_set(int32_t x) {
    return (lanes_i32){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
LIL_INLINE lanes_i32 lanes_i32_add(lanes_i32 a, lanes_i32 b) {
    return (lanes_i32){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

LIL_INLINE lanes lanes_set(float x) {
    return (lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
LIL_INLINE lanes lanes_zero(void) {
    return (lanes){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
LIL_INLINE lanes lanes_add(lanes a, lanes b) {
    return (lanes){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
LIL_INLINE lanes lanes_sub(lanes a, lanes b) {
    return (lanes){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
LIL_INLINE lanes lanes_mul(lanes a, lanes b) {
    return (lanes){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
LIL_INLINE lanes lanes_div(lanes a, lanes b) {
    return (lanes){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
/* a > b ? a : b, and a < b ? a : b: where either is NaN, b. */
LIL_INLINE lanes lanes_max(lanes a, lanes b) {
    return (lanes){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
LIL_INLINE lanes lanes_min(lanes a, lanes b) {
    return (lanes){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
LIL_INLINE lanes lanes_abs(lanes x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (lanes){_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
/* The first n lanes of a, the others of b; all of a for n >= 16. */
LIL_INLINE lanes lanes_first(lanes a, lanes b, size_t n) {
    const lanes_i32 mask = lanes_mask(n < 16 ? n : 16);
    return (lanes){_mm256_blendv_ps(b.low, a.low, _mm256_castsi256_ps(mask.low)),
                   _mm256_blendv_ps(b.high, a.high, _mm256_castsi256_ps(mask.high))};
}
/* x in the lanes where a >= b, else +0. */
LIL_INLINE lanes lanes_where_ge(lanes a, lanes b, lanes x) {
    return (lanes){_mm256_and_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ), x.low),
                   _mm256_and_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ), x.high)};
}

LIL_INLINE lanes lanes_sqrt(lanes x) {
    return (lanes){_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high)};
}
/* The larger of |a| and b, which is neither negative nor NaN; NaN never wins. */
LIL_INLINE lanes lanes_max_abs(lanes a, lanes b) {
    return lanes_max(lanes_abs(a), b);
}

/* One combining step of two vectors of eight: their lanes j and j + 4 (2, 1) together, both results in one vector. */
#define LIL_PAIR_4(op, a, b) op(_mm256_permute2f128_ps(a, b, 0x21), _mm256_blend_ps(a, b, 0xF0))
#define LIL_PAIR_2(op, a, b) op(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xEE))
#define LIL_PAIR_1(op, a, b) op(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xDD))
/* Eight vectors of sixteen lanes to the eight lanes of one. After the first two steps x[k] is in the lower half and
 * x[k + 4] in the upper one. */
#define LIL_REDUCE_8(op, x)                                                                                           \
    __m256 four[4];                                                                                                   \
    LIL_UNROLL                                                                                                        \
    for (int k = 0; k < 4; k++) {                                                                                     \
        const __m256 a = op((x)[k].low, (x)[k].high), b = op((x)[k + 4].low, (x)[k + 4].high);                        \
        four[k] = LIL_PAIR_4(op, a, b);                                                                               \
    }                                                                                                                 \
    const __m256 first = LIL_PAIR_2(op, four[0], four[1]), second = LIL_PAIR_2(op, four[2], four[3]);                 \
    return LIL_PAIR_1(op, first, second)

LIL_INLINE __m256 lanes_tree8(const lanes x[8]) {
    LIL_REDUCE_8(_mm256_add_ps, x);
}
LIL_INLINE __m256 lanes_largest8(const lanes x[8]) {
    LIL_REDUCE_8(_mm256_max_ps, x);
}
/* Lane r: the format's tree over x[r]. */
LIL_INLINE lanes lanes_tree16(const lanes x[16]) {
    return (lanes){lanes_tree8(x), lanes_tree8(x + 8)};
}
/* Lane r: the largest lane of x[r], none of which is NaN. */
LIL_INLINE lanes lanes_largest16(const lanes x[16]) {
    return (lanes){lanes_largest8(x), lanes_largest8(x + 8)};
}

/* The largest lane; none is NaN, or all are. */
LIL_INLINE float lanes_largest(lanes x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* Each lane to an integer: half to even, and towards zero. All are within int32. */
LIL_INLINE lanes_i32 lanes_round(lanes x) {
    return (lanes_i32){_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)};
}
LIL_INLINE lanes_i32 lanes_truncate(lanes x) {
    return (lanes_i32){_mm256_cvttps_epi32(x.low), _mm256_cvttps_epi32(x.high)};
}
LIL_INLINE lanes lanes_from_i32(lanes_i32 x) {
    return (lanes){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}
LIL_INLINE __m256 lanes_add_exponent(__m256 p, __m256 biased) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}
/* Lane i of x[c]: table[k[i]][c]. Eight loads of four and a transposition take less than four gathers. */
LIL_INLINE lanes lanes_look_up(const float table[32], lanes_i32 k) {
    return (lanes){_mm256_i32gather_ps(table, k.low, 4), _mm256_i32gather_ps(table, k.high, 4)};
}
#define LIL_LOOK_UP_FOURS
LIL_INLINE void lanes_look_up_8(const float table[32][4], __m256i k, __m256 x[4]) {
    _Alignas(32) uint32_t row[8];
    __m256 fours[4];             /* lane i's in the lower, lane i + 4's in the upper half */
    _mm256_store_si256((__m256i *)(void *)row, k);
    LIL_UNROLL
    for (size_t i = 0; i < 4; i++) {
        const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(table[row[i]]));
        fours[i] = _mm256_insertf128_ps(low, _mm_loadu_ps(table[row[i + 4]]), 1);
    }
    const __m256 a = _mm256_unpacklo_ps(fours[0], fours[1]), b = _mm256_unpackhi_ps(fours[0], fours[1]);
    const __m256 c = _mm256_unpacklo_ps(fours[2], fours[3]), d = _mm256_unpackhi_ps(fours[2], fours[3]);
    x[0] = _mm256_shuffle_ps(a, c, 0x44);
    x[1] = _mm256_shuffle_ps(a, c, 0xEE);
    x[2] = _mm256_shuffle_ps(b, d, 0x44);
    x[3] = _mm256_shuffle_ps(b, d, 0xEE);
}
LIL_INLINE void lanes_look_up_fours(const float table[32][4], lanes_i32 k, lanes x[4]) {
    __m256 low[4], high[4];
    lanes_look_up_8(table, k.low, low);
    lanes_look_up_8(table, k.high, high);
    LIL_UNROLL
    for (size_t c = 0; c < 4; c++) {
        x[c] = (lanes){low[c], high[c]};
    }
}

/* Bytes, bf16 and codes to lanes; int32 lanes to bytes. */
LIL_INLINE __m128i lanes_bytes(const void *p) {
    return _mm_loadu_si128((const __m128i *)p);
}
LIL_INLINE lanes lanes_from_bytes(__m128i x) {
    return lanes_from_i32((lanes_i32){_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))});
}
LIL_INLINE lanes lanes_from_u8(const uint8_t *p) {
    const __m128i x = lanes_bytes(p);
    return lanes_from_i32((lanes_i32){_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))});
}
LIL_INLINE __m256 lanes_from_upper(const uint8_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(lanes_bytes(p)), 16));
}
LIL_INLINE lanes lanes_from_bf16(const uint8_t *p) {
    return (lanes){lanes_from_upper(p), lanes_from_upper(p + 16)};
}
LIL_INLINE lanes lanes_from_bf16_part(const uint8_t *p, size_t n) {
    uint8_t copy[32] = {0};
    memcpy(copy, p, 2 * n);
    return lanes_from_bf16(copy);
}
LIL_INLINE lanes lanes_from_i8(const int8_t *p) {
    return lanes_from_bytes(lanes_bytes(p));
}
/* Levels of the 16 codes of 4 bits in the 8 bytes at p, the low nibble first. */
LIL_INLINE lanes lanes_from_codes4(const uint8_t *p, const int8_t levels[16]) {
    const __m128i pairs = _mm_loadl_epi64((const __m128i *)(const void *)p), nibble = _mm_set1_epi8(15);
    const __m128i upper = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
    const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(pairs, nibble), upper);
    return lanes_from_bytes(_mm_shuffle_epi8(lanes_bytes(levels), codes));
}

/* Vectors of levels -127..127 as bytes: all 16 of one, */
LIL_INLINE __m128i lanes_packed(lanes_i32 x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xD8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
/* and half of each of four: in each 128-bit lane four bytes of a, four of b, of c and of d. */
LIL_INLINE __m256i lanes_packed4(__m256i a, __m256i b, __m256i c, __m256i d) {
    return _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}
LIL_INLINE void lanes_i32_store_i8(int8_t *p, lanes_i32 x) {
    _mm_storeu_si128((__m128i *)(void *)p, lanes_packed(x));
}
LIL_INLINE void lanes_i32_store_i8_part(int8_t *p, lanes_i32 x, size_t n) {
    int8_t bytes[16];
    lanes_i32_store_i8(bytes, x);
    memcpy(p, bytes, n);
}
/* Four of them: 64 bytes. */
LIL_INLINE void lanes_i32_store_i8x4(int8_t *p, const lanes_i32 x[4]) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i first = lanes_packed4(x[0].low, x[0].high, x[1].low, x[1].high);
    const __m256i second = lanes_packed4(x[2].low, x[2].high, x[3].low, x[3].high);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permutevar8x32_epi32(first, order));
    _mm256_storeu_si256((__m256i *)(void *)(p + 32), _mm256_permutevar8x32_epi32(second, order));
}
/* The weights of four vectors of 0..255, as 64 bytes; gives `sum` and, in some lanes, what they add up to. */
LIL_INLINE __m256i lanes_weights_of(__m256i t) {
    return _mm256_and_si256(_mm256_i32gather_epi32((const int *)(const void *)lil_weights, t, 1),
                            _mm256_set1_epi32(255));
}
LIL_INLINE lanes_i32 lanes_store_weights(uint8_t *p, const lanes_i32 t[4], lanes_i32 sum) {
    lanes_i32 w[4];
    LIL_UNROLL
    for (size_t i = 0; i < 4; i++) {
        w[i] = (lanes_i32){lanes_weights_of(t[i].low), lanes_weights_of(t[i].high)};
        sum = (lanes_i32){_mm256_add_epi32(sum.low, w[i].low), _mm256_add_epi32(sum.high, w[i].high)};
    }
    lanes_i32_store_i8x4((int8_t *)p, w); /* 0..127 */
    return sum;
}
/* Byte k of lane i: lane i of x[k], a level. */
LIL_INLINE void lanes_i32_store_fours(int8_t *p, const lanes_i32 x[4]) {
    const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, /* both halves */
                                           0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i low = lanes_packed4(x[0].low, x[1].low, x[2].low, x[3].low);
    const __m256i high = lanes_packed4(x[0].high, x[1].high, x[2].high, x[3].high);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_shuffle_epi8(low, order));
    _mm256_storeu_si256((__m256i *)(void *)(p + 32), _mm256_shuffle_epi8(high, order));
}
/* Levels [16 rows][16 dims] as four tiles. */
LIL_INLINE void lanes_store_tiles(int8_t *tiles, const lanes_i32 x[16]) {
    LIL_UNROLL
    for (int r = 0; r < 16; r += 8, tiles += 32) { /* half of each tile: eight rows */
        const __m256i a = lanes_packed4(x[r].low, x[r + 1].low, x[r + 2].low, x[r + 3].low); /* dims 0 to 3, 4 to 7 */
        const __m256i b = lanes_packed4(x[r + 4].low, x[r + 5].low, x[r + 6].low, x[r + 7].low);
        const __m256i c = lanes_packed4(x[r].high, x[r + 1].high, x[r + 2].high, x[r + 3].high);
        const __m256i d = lanes_packed4(x[r + 4].high, x[r + 5].high, x[r + 6].high, x[r + 7].high);
        _mm256_storeu_si256((__m256i *)(void *)tiles, _mm256_permute2x128_si256(a, b, 0x20));
        _mm256_storeu_si256((__m256i *)(void *)(tiles + 64), _mm256_permute2x128_si256(a, b, 0x31));
        _mm256_storeu_si256((__m256i *)(void *)(tiles + 128), _mm256_permute2x128_si256(c, d, 0x20));
        _mm256_storeu_si256((__m256i *)(void *)(tiles + 192), _mm256_permute2x128_si256(c, d, 0x31));
    }
}

/* Four bytes of memory at any alignment, eight times. */
typedef int32_t __attribute__((aligned(1), may_alias)) lanes_four;
LIL_INLINE __m256i lanes_repeat_four(const void *p) {
    return _mm256_set1_epi32(*(const lanes_four *)p);
}
/* Sums as assembly, because compilers make trees of their chains, and then run out of registers. */
LIL_INLINE __m256i lanes_add_words(__m256i a, __m256i b) {
    __m256i sum;
    __asm__("vpaddw %2, %1, %0" : "=x"(sum) : "x"(a), "x"(b));
    return sum;
}
LIL_INLINE __m256i lanes_add_ints(__m256i a, __m256i b) {
    __m256i sum;
    __asm__("vpaddd %2, %1, %0" : "=x"(sum) : "x"(a), "x"(b));
    return sum;
}
/* acc + four products a lane, of bytes 0..255 and -128..127 whose pairs of products fit 16 bits. */
LIL_INLINE __m256i lanes_dot(__m256i acc, __m256i positive, __m256i any) {
    const __m256i pairs = _mm256_maddubs_epi16(positive, any);
    return lanes_add_ints(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* A tile: levels [16 rows][4 dims], to be multiplied by four others, one row a lane. The instruction takes one side
 * unsigned: |tile|, whose sign goes to the other side (2 * 127 * 127 < 2^15); or weights 0..127. */
#define LIL_OFFSET 0
typedef struct lanes_tile {
    __m256i low, high;
    __m256i low_size, high_size; /* absolute values; of an offset tile only */
} lanes_tile;
LIL_INLINE lanes_tile lanes_plain_tile(const int8_t *p) {
    return (lanes_tile){.low = _mm256_loadu_si256((const __m256i *)(const void *)p),
                        .high = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32))};
}
LIL_INLINE lanes_tile lanes_offset_tile(const int8_t *p) {
    const lanes_tile t = lanes_plain_tile(p);
    return (lanes_tile){t.low, t.high, _mm256_abs_epi8(t.low), _mm256_abs_epi8(t.high)};
}
LIL_INLINE lanes_i32 lanes_dot_levels(lanes_i32 acc, lanes_tile tile, const int8_t *four) {
    const __m256i repeated = lanes_repeat_four(four);
    return (lanes_i32){lanes_dot(acc.low, tile.low_size, _mm256_sign_epi8(repeated, tile.low)),
                       lanes_dot(acc.high, tile.high_size, _mm256_sign_epi8(repeated, tile.high))};
}
LIL_INLINE lanes_i32 lanes_dot_weights(lanes_i32 acc, lanes_tile tile, const int8_t *four) {
    const __m256i repeated = lanes_repeat_four(four);
    return (lanes_i32){lanes_dot(acc.low, repeated, tile.low), lanes_dot(acc.high, repeated, tile.high)};
}

#endif
