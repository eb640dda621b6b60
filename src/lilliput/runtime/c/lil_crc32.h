/* CRC-32 (zlib's polynomial, reflected), eight bytes a step. Internal.
 *
 * Table `k` maps a byte to its effect on the checksum k + 1 bytes later. A CRC is linear over exclusive or, so the
 * eight entries of the single bits, written out below, give all 256. */
#ifndef LIL_CRC32_H
#define LIL_CRC32_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lil_isa.h"

#define LIL_CRC_BIT(i, bit, value) ((i) >> (bit)&1u ? (value) : 0u)
#define LIL_CRC_1(i, b0, b1, b2, b3, b4, b5, b6, b7)                                                                  \
    (LIL_CRC_BIT(i, 0, b0) ^ LIL_CRC_BIT(i, 1, b1) ^ LIL_CRC_BIT(i, 2, b2) ^ LIL_CRC_BIT(i, 3, b3) ^                  \
     LIL_CRC_BIT(i, 4, b4) ^ LIL_CRC_BIT(i, 5, b5) ^ LIL_CRC_BIT(i, 6, b6) ^ LIL_CRC_BIT(i, 7, b7))
#define LIL_CRC_4(i, ...)                                                                                             \
    LIL_CRC_1(i, __VA_ARGS__), LIL_CRC_1((i) + 1u, __VA_ARGS__), LIL_CRC_1((i) + 2u, __VA_ARGS__),                    \
        LIL_CRC_1((i) + 3u, __VA_ARGS__)
#define LIL_CRC_16(i, ...)                                                                                            \
    LIL_CRC_4(i, __VA_ARGS__), LIL_CRC_4((i) + 4u, __VA_ARGS__), LIL_CRC_4((i) + 8u, __VA_ARGS__),                    \
        LIL_CRC_4((i) + 12u, __VA_ARGS__)
#define LIL_CRC_64(i, ...)                                                                                            \
    LIL_CRC_16(i, __VA_ARGS__), LIL_CRC_16((i) + 16u, __VA_ARGS__), LIL_CRC_16((i) + 32u, __VA_ARGS__),               \
        LIL_CRC_16((i) + 48u, __VA_ARGS__)
#define LIL_CRC_256(...)                                                                                              \
    LIL_CRC_64(0u, __VA_ARGS__), LIL_CRC_64(64u, __VA_ARGS__), LIL_CRC_64(128u, __VA_ARGS__),                         \
        LIL_CRC_64(192u, __VA_ARGS__)

static const uint32_t lil_crc_tables[8][256] = {
    {LIL_CRC_256(0x77073096u, 0xEE0E612Cu, 0x076DC419u, 0x0EDB8832u,
                 0x1DB71064u, 0x3B6E20C8u, 0x76DC4190u, 0xEDB88320u)},
    {LIL_CRC_256(0x191B3141u, 0x32366282u, 0x646CC504u, 0xC8D98A08u,
                 0x4AC21251u, 0x958424A2u, 0xF0794F05u, 0x3B83984Bu)},
    {LIL_CRC_256(0x01C26A37u, 0x0384D46Eu, 0x0709A8DCu, 0x0E1351B8u,
                 0x1C26A370u, 0x384D46E0u, 0x709A8DC0u, 0xE1351B80u)},
    {LIL_CRC_256(0xB8BC6765u, 0xAA09C88Bu, 0x8F629757u, 0xC5B428EFu,
                 0x5019579Fu, 0xA032AF3Eu, 0x9B14583Du, 0xED59B63Bu)},
    {LIL_CRC_256(0x3D6029B0u, 0x7AC05360u, 0xF580A6C0u, 0x30704BC1u,
                 0x60E09782u, 0xC1C12F04u, 0x58F35849u, 0xB1E6B092u)},
    {LIL_CRC_256(0xCB5CD3A5u, 0x4DC8A10Bu, 0x9B914216u, 0xEC53826Du,
                 0x03D6029Bu, 0x07AC0536u, 0x0F580A6Cu, 0x1EB014D8u)},
    {LIL_CRC_256(0xA6770BB4u, 0x979F1129u, 0xF44F2413u, 0x33EF4E67u,
                 0x67DE9CCEu, 0xCFBD399Cu, 0x440B7579u, 0x8816EAF2u)},
    {LIL_CRC_256(0xCCAA009Eu, 0x4225077Du, 0x844A0EFAu, 0xD3E51BB5u,
                 0x7CBB312Bu, 0xF9766256u, 0x299DC2EDu, 0x533B85DAu)},
};

/* The checksum's state after `count` bytes more; it begins at all ones and its complement is the checksum. */
static inline uint32_t lil_crc32_more(uint32_t crc, const uint8_t *bytes, size_t count) {
    for (; count >= 8; count -= 8, bytes += 8) {
        uint32_t low, high;
        memcpy(&low, bytes, 4);
        memcpy(&high, bytes + 4, 4);
        low ^= crc;
        crc = lil_crc_tables[7][low & 255] ^ lil_crc_tables[6][low >> 8 & 255] ^ lil_crc_tables[5][low >> 16 & 255] ^
              lil_crc_tables[4][low >> 24] ^ lil_crc_tables[3][high & 255] ^ lil_crc_tables[2][high >> 8 & 255] ^
              lil_crc_tables[1][high >> 16 & 255] ^ lil_crc_tables[0][high >> 24];
    }
    for (; count > 0; count--, bytes++) {
        crc = crc >> 8 ^ lil_crc_tables[0][(crc ^ *bytes) & 255];
    }
    return crc;
}

#if LIL_X86
#include <immintrin.h>
#define LIL_CLMUL __attribute__((target("pclmul,sse4.1")))

/* 16 bytes of state, moved past as many bits as `by` is made for, and the next 16 bytes. */
LIL_CLMUL static inline __m128i lil_crc_fold(__m128i state, __m128i by, const uint8_t *bytes) {
    const __m128i low = _mm_clmulepi64_si128(state, by, 0x00), high = _mm_clmulepi64_si128(state, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128((const __m128i *)(const void *)bytes));
}

/* lil_crc32_more for 64 bytes or more, by products of polynomials (Gopal et al., "Fast CRC Computation for Generic
 * Polynomials Using PCLMULQDQ", Intel, 2009): 64 bytes are folded into the next 64 until 16 bytes are left that have
 * the same remainder as all, which the tables then find. The constants are that paper's for this polynomial. */
LIL_CLMUL static inline uint32_t lil_crc32_clmul(uint32_t crc, const uint8_t *bytes, size_t count) {
    const __m128i by_512 = _mm_set_epi64x(0x01C6E41596, 0x0154442BD4);
    const __m128i by_128 = _mm_set_epi64x(0x00CCAA009E, 0x01751997D0);
    const __m128i zero = _mm_setzero_si128();
    __m128i state[4];
    for (int i = 0; i < 4; i++) {
        state[i] = lil_crc_fold(zero, zero, bytes + 16 * i);
    }
    state[0] = _mm_xor_si128(state[0], _mm_cvtsi32_si128((int)crc));
    for (bytes += 64, count -= 64; count >= 64; bytes += 64, count -= 64) {
        for (int i = 0; i < 4; i++) {
            state[i] = lil_crc_fold(state[i], by_512, bytes + 16 * i);
        }
    }
    uint8_t left[16];
    for (int i = 1; i < 4; i++) {
        _mm_storeu_si128((__m128i *)(void *)left, state[i]);
        state[i] = lil_crc_fold(state[i - 1], by_128, left);
    }
    _mm_storeu_si128((__m128i *)(void *)left, state[3]);
    return lil_crc32_more(lil_crc32_more(0, left, sizeof left), bytes, count);
}
#endif

static inline uint32_t lil_crc32(const uint8_t *bytes, size_t count, const lil_cpu *cpu) {
    (void)cpu;
#if LIL_X86
    if (count >= 64 && cpu->clmul) {
        return ~lil_crc32_clmul(0xFFFFFFFFu, bytes, count);
    }
#endif
    return ~lil_crc32_more(0xFFFFFFFFu, bytes, count);
}

#endif
