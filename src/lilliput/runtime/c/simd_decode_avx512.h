/* Weights of the file to int8 levels, by AVX-512. Internal. */
#ifndef LIL_SIMD_DECODE_AVX512_H
#define LIL_SIMD_DECODE_AVX512_H

#include "simd_lanes_avx512.h"

/* The table of a 4-bit format, four times over: vpermb looks at 6 bits of its index, of which the upper two may then
 * be anything. */
LIL_INLINE __m512i table_4bit(uint16_t format) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)lil_levels_4bit[format - LIL_INT4]));
}

/* Table values of inputs [k0, k0 + n) of 16 outputs, both multiples of 8, in the order of 8-bit `tiles`: 16 * n
 * bytes. */
LIL_INLINE void decode_by_table(const uint8_t *codes, __m512i table, size_t k0, size_t n, uint8_t *levels) {
    codes += 8 * k0;
    for (size_t i = 0; i < 8 * n; i += 64) {
        const __m512i pairs = _mm512_loadu_si512(codes + i);
        _mm512_storeu_si512(levels + 2 * i, _mm512_permutexvar_epi8(pairs, table));
        _mm512_storeu_si512(levels + 2 * i + 64, _mm512_permutexvar_epi8(_mm512_srli_epi16(pairs, 4), table));
    }
}

/* What is added to a format's levels to make them unsigned. */
LIL_INLINE uint8_t level_offset(uint16_t format) {
    return format == LIL_INT8 ? 128 : 64; /* 4-bit levels are -64..64 */
}

/* The same with level_offset added, from the codes of any format. */
LIL_INLINE void decode_unsigned(const uint8_t *codes, uint16_t format, size_t k0, size_t n, uint8_t *levels) {
    if (format == LIL_INT8) {
        for (size_t i = 0; i < 16 * n; i += 64) {
            const __m512i code = _mm512_loadu_si512(codes + 16 * k0 + i);
            _mm512_storeu_si512(levels + i, _mm512_xor_si512(code, _mm512_set1_epi8((char)0x80)));
        }
        return;
    }
    decode_by_table(codes, _mm512_add_epi8(table_4bit(format), _mm512_set1_epi8(64)), k0, n, levels);
}

#endif
