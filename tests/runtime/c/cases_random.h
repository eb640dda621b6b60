/* Seeded random numbers, sizes and values for cases.c. The values are those on which kernels go wrong: zeros of both
 * signs, denormals, the edge below which a row is zero, halves, overflow, infinities and NaN, mixed within a row. */
#ifndef CASES_RANDOM_H
#define CASES_RANDOM_H

#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "lil_format.h"

static uint64_t random_state;

static uint64_t random_bits(void) { /* splitmix64 */
    uint64_t z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static size_t below(size_t n) {
    return (size_t)((random_bits() >> 32) * n >> 32); /* n < 2^32 */
}

static size_t between(size_t low, size_t high) {
    return low + below(high - low + 1);
}

static bool one_in(size_t n) {
    return below(n) == 0;
}

/* A size 1..limit: half of them around the widths of vectors and tiles. */
static size_t random_size(size_t limit) {
    static const uint8_t edges[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65};
    const size_t usual = one_in(4) || limit < 40 ? limit : 40;
    const size_t size = one_in(2) ? edges[below(sizeof edges)] : between(1, usual);
    return size < limit ? size : limit;
}

/* -1..1 */
static float random_unit(void) {
    return (float)(int32_t)(uint32_t)(random_bits() >> 32) * 0x1p-31f;
}

/* 2^exponent, -149..127 */
static float power_of_2(int exponent) {
    return lil_float_from_bits(exponent >= -126 ? (uint32_t)(exponent + 127) << 23 : 1u << (exponent + 149));
}

typedef enum value_class {
    PLAIN,
    ZERO,
    NEGATIVE_ZERO,
    CONSTANT,
    TINY,         /* on both sides of 1e-30 */
    DENORMAL,
    LARGE,
    OVERFLOWING,  /* up to the largest, some infinite */
    BROKEN,       /* plain, some NaN or infinite */
    ANY_BITS,
    ONE_EXPONENT, /* of a row */
    HALVES,       /* 127, then k + 0.5: levels that round half to even */
    NUM_CLASSES
} value_class;

static float random_special(void) {
    static const float specials[] = {NAN,     INFINITY, -INFINITY, 0.0f,    -0.0f,   FLT_MAX, -FLT_MAX,
                                     FLT_MIN, 1e-45f,   -1e-45f,   1e-30f,  9.9e-31f, 1.0f,    -88.5f};
    return specials[below(sizeof specials / sizeof *specials)];
}

/* Any bits, but no signalling NaN: no op gives one, and no file holds one. */
static float random_pattern(void) {
    const uint32_t bits = (uint32_t)random_bits();
    return lil_float_from_bits(bits << 1 > 0xFF000000u ? bits | 0x400000u : bits);
}

/* Element `i` of a row whose constant is `level` and whose power of two is `power`. */
static float random_value(value_class class, size_t i, float level, float power) {
    switch (class) {
    case ZERO: return 0.0f;
    case NEGATIVE_ZERO: return -0.0f;
    case CONSTANT: return level;
    case TINY: return one_in(8) ? 1e-30f : random_unit() * 0x1p-99f;
    case DENORMAL: return lil_float_from_bits((uint32_t)random_bits() & 0x807FFFFFu);
    case LARGE: return random_unit() * 0x1p+120f;
    case OVERFLOWING: return one_in(16) ? copysignf(INFINITY, random_unit()) : random_unit() * FLT_MAX;
    case BROKEN: return one_in(8) ? random_special() : random_unit();
    case ANY_BITS: return random_pattern();
    case ONE_EXPONENT: return random_unit() * power;
    case HALVES: return i == 0 ? 127.0f : (float)between(0, 252) - 126.5f;
    default: return random_unit() * 3.0f;
    }
}

static value_class random_class(void) {
    return one_in(2) ? PLAIN : (value_class)below(NUM_CLASSES);
}

/* Fill rows of `cols` floats, `stride` floats apart. One class for all rows, or one for each; in some cases a few
 * single values are something else. */
static void fill_floats(float *x, size_t rows, size_t cols, size_t stride) {
    const value_class common = random_class();
    const bool by_row = one_in(3), spoiled = one_in(6);
    for (size_t r = 0; r < rows; r++, x += stride) {
        const value_class class = by_row ? random_class() : common;
        const float level = random_unit() * 2.0f, power = power_of_2((int)below(270) - 146);
        for (size_t i = 0; i < cols; i++) {
            x[i] = random_value(class, i, level, power);
        }
        if (spoiled && one_in(2)) {
            const size_t at = below(cols);
            x[at] = random_special();
        }
    }
}

/* Finite floats: what f32 and bf16 tensors may hold. `magnitude` of the plain ones; negative ones where `is_signed`. */
static float random_constant(value_class class, float magnitude, bool is_signed) {
    float value = random_value(class, 1, magnitude, magnitude);
    value = isfinite(value) ? value : 1.0f;
    value = class == PLAIN ? random_unit() * magnitude : value;
    return is_signed ? value : fabsf(value);
}

static void fill_f32(uint8_t *bytes, size_t n) {
    const value_class class = random_class();
    const float magnitude = one_in(2) ? 0.02f : 2.0f;
    for (size_t i = 0; i < n; i++) {
        const float value = random_constant(one_in(32) ? ANY_BITS : class, magnitude, true);
        memcpy(bytes + 4 * i, &value, sizeof value);
    }
}

static void fill_bf16(uint8_t *bytes, size_t n, float magnitude, bool is_signed) {
    const value_class class = random_class();
    for (size_t i = 0; i < n; i++) {
        const float value = random_constant(one_in(32) ? random_class() : class, magnitude, is_signed);
        memcpy(bytes + 2 * i, (const uint8_t *)&value + 2, 2);
    }
}

/* Activations: -127..127. */
static void fill_levels(int8_t *x, size_t n) {
    const size_t how = below(6);
    for (size_t i = 0; i < n; i++) {
        const int8_t plain = (int8_t)((int)below(255) - 127), extreme = one_in(2) ? 127 : -127;
        x[i] = how == 0 ? extreme : how == 1 ? 127 : how == 2 ? -127 : how == 3 && !one_in(10) ? 0 : plain;
    }
}

typedef struct code_format {
    uint16_t id;
    uint8_t bits;
    uint8_t unused; /* the code that no level has */
    uint8_t lowest; /* the codes of the extreme levels */
    uint8_t highest;
} code_format;

static const code_format code_formats[] = {
    {LIL_INT8, 8, 128, 129, 127},
    {LIL_INT4, 4, 8, 9, 7},
    {LIL_POT4, 4, 8, 15, 7},
    {LIL_INT6, 6, 32, 33, 31},
    {LIL_APOT4, 4, 8, 15, 7},
    {LIL_APOT6, 6, 32, 63, 31},
};

/* How the codes of one tensor are chosen. */
typedef enum code_class { ANY_CODE, EXTREME, HIGHEST, LOWEST, SPARSE, NUM_CODE_CLASSES } code_class;

static uint8_t random_code(const code_format *format, code_class class) {
    const uint8_t code = (uint8_t)(random_bits() >> (64 - format->bits));
    switch (class) {
    case EXTREME: return one_in(2) ? format->lowest : format->highest;
    case HIGHEST: return format->highest;
    case LOWEST: return format->lowest;
    case SPARSE: return one_in(10) && code != format->unused ? code : 0;
    default: return code == format->unused ? 0 : code;
    }
}

#endif
