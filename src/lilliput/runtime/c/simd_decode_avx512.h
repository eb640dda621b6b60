/* Weights of the file to int8 levels, by AVX-512 VBMI. Internal. */
#ifndef LIL_SIMD_DECODE_AVX512_H
#define LIL_SIMD_DECODE_AVX512_H

#include "simd_lanes_avx512.h"

/* How one format's codes become levels plus an offset. */
typedef struct decoder {
    uint16_t format;
    uint16_t bits; /* of a code */
    __m512i table; /* of 64 entries; vpermb looks at 6 bits of its index, so a table of 16 is there four times */
    __m512i flip;  /* LIL_INT8: codes exclusive-or this */
} decoder;

/* Levels as they are, or, `is_unsigned`, with unsigned_offset added. */
LIL_INLINE uint8_t unsigned_offset(uint16_t format) {
    return format == LIL_INT8 || format == LIL_APOT6 ? 128 : 64; /* of the others no level is beyond -64..64 */
}

LIL_INLINE decoder decoder_of(uint16_t format, bool is_unsigned) {
    const __m512i offset = _mm512_set1_epi8((char)(is_unsigned ? unsigned_offset(format) : 0));
    decoder d = {.format = format, .bits = (uint16_t)lil_code_bits(format), .table = offset, .flip = offset};
    const int8_t *levels = lil_levels_of(format);
    if (d.bits == 6) {
        d.table = _mm512_add_epi8(_mm512_loadu_si512(levels), offset);
    } else if (d.bits == 4) {
        const __m128i table = _mm_loadu_si128((const __m128i *)(const void *)levels);
        d.table = _mm512_add_epi8(_mm512_broadcast_i32x4(table), offset);
    }
    return d;
}

/* Pair number `pair` of tiles (2 x 4 inputs, 16 outputs) of the block at `codes`. */
LIL_INLINE void decode_pair(const decoder *d, const uint8_t *codes, size_t pair, __m512i tile[2]) {
    if (d->bits == 8) {
        tile[0] = _mm512_xor_si512(_mm512_loadu_si512(codes), d->flip);
        tile[1] = _mm512_xor_si512(_mm512_loadu_si512(codes + 64), d->flip);
    } else if (d->bits == 4) {
        const __m512i both = _mm512_loadu_si512(codes);
        tile[0] = _mm512_permutexvar_epi8(both, d->table);
        tile[1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(both, 4), d->table);
    } else {
        /* Bits 0 to 3 from the nibbles, 4 and 5 from the upper bits; 0xCA: the first operand chooses. */
        const __m512i low = _mm512_set1_epi8(15), both = _mm512_loadu_si512(codes + 64 * pair);
        const __m512i upper = _mm512_loadu_si512(codes + 128);
        const __m512i upper0 = pair == 0 ? _mm512_slli_epi16(upper, 4) : upper;
        const __m512i upper1 = pair == 0 ? _mm512_slli_epi16(upper, 2) : _mm512_srli_epi16(upper, 2);
        const __m512i code0 = _mm512_ternarylogic_epi32(low, both, upper0, 0xCA);
        const __m512i code1 = _mm512_ternarylogic_epi32(low, _mm512_srli_epi16(both, 4), upper1, 0xCA);
        tile[0] = _mm512_permutexvar_epi8(code0, d->table);
        tile[1] = _mm512_permutexvar_epi8(code1, d->table);
    }
}

/* The same for 64 inputs, which are whole blocks: 1024 bytes, to a multiple of 64. */
LIL_INLINE void decode_tiles_64(const decoder *d, const uint8_t *codes, uint8_t *levels) {
    __m512i tile[2];
    if (d->bits == 6) {
        LIL_UNROLL
        for (size_t i = 0; i < 8; i++) {
            decode_pair(d, codes + i / 2 * 192, i % 2, tile);
            _mm512_store_si512(levels + 128 * i, tile[0]);
            _mm512_store_si512(levels + 128 * i + 64, tile[1]);
        }
        return;
    }
    LIL_UNROLL
    for (size_t i = 0; i < 8; i++) {
        const __m512i both = _mm512_loadu_si512(codes + 64 * i);
        _mm512_store_si512(levels + 128 * i, _mm512_permutexvar_epi8(both, d->table));
        _mm512_store_si512(levels + 128 * i + 64, _mm512_permutexvar_epi8(_mm512_srli_epi16(both, 4), d->table));
    }
}

/* Inputs [0, n) of a block row at `codes`, n a multiple of 8, in the order of 8-bit `tiles`: 16 * n bytes. */
LIL_INLINE void decode_tiles(const decoder *d, const uint8_t *codes, size_t n, uint8_t *levels) {
    const size_t pairs = lil_block_cols(d->format) / 8, block_bytes = lil_block_bytes(d->format);
    for (size_t k = 0; k < n; k += 8 * pairs, codes += block_bytes) {
        for (size_t pair = 0; pair < pairs && k + 8 * pair < n; pair++) {
            __m512i tile[2];
            decode_pair(d, codes, pair, tile);
            _mm512_storeu_si512(levels + 16 * (k + 8 * pair), tile[0]);
            _mm512_storeu_si512(levels + 16 * (k + 8 * pair) + 64, tile[1]);
        }
    }
}

/* Bytes of a block row of `tiles` for n inputs. */
LIL_INLINE size_t tiles_bytes(uint16_t format, size_t n) {
    const size_t width = lil_block_cols(format);
    return (n + width - 1) / width * lil_block_bytes(format);
}

#endif
