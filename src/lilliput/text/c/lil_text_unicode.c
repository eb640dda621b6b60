/* Look-ups in the tables of characters. */
#include "lil_text_unicode.h"

enum { HANGUL = 0xAC00, HANGUL_COUNT = 11172, HANGUL_L = 0x1100, HANGUL_V = 0x1161, HANGUL_T = 0x11A7 };
enum { HANGUL_VT = 588, HANGUL_TS = 28 };

uint32_t lil_text_property(uint32_t code) {
    size_t low = 0, high = lil_text_properties_count; /* the entry is in [low, high) */
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (lil_text_properties[middle] >> LIL_CHAR_BITS <= code) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return lil_text_properties[low] & (((uint32_t)1 << LIL_CHAR_BITS) - 1);
}

/* The Unicode Standard, section 3.12, Hangul Syllable Decomposition. */
static size_t strip_hangul(uint32_t syllable, uint32_t left[3]) {
    left[0] = HANGUL_L + syllable / HANGUL_VT;
    left[1] = HANGUL_V + syllable % HANGUL_VT / HANGUL_TS;
    left[2] = HANGUL_T + syllable % HANGUL_TS;
    return left[2] == HANGUL_T ? 2 : 3;
}

size_t lil_text_strip(uint32_t code, uint32_t left[3]) {
    if (code - HANGUL < HANGUL_COUNT) {
        return strip_hangul(code - HANGUL, left);
    }
    left[0] = code;
    size_t low = 0, high = lil_text_stripped_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (lil_text_stripped[middle] >> 24 < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low < lil_text_stripped_count && lil_text_stripped[low] >> 24 == code) {
        left[0] = (uint32_t)(lil_text_stripped[low] & 0xFFFFFF);
        return 1;
    }
    for (size_t i = 0; i < lil_text_stripped_long_count && lil_text_stripped_long[i][0] <= code; i++) {
        const uint32_t *row = lil_text_stripped_long[i];
        if (row[0] == code) {
            left[0] = row[1], left[1] = row[2], left[2] = row[3];
            return row[3] == 0 ? 2 : 3;
        }
    }
    return 1;
}

uint32_t lil_text_lower(uint32_t code) {
    size_t low = 0, high = lil_text_lowered_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (lil_text_lowered[middle][1] < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low < lil_text_lowered_count) {
        const uint32_t *row = lil_text_lowered[low];
        if (row[0] <= code && (code - row[0]) % row[2] == 0) {
            return code + row[3];
        }
    }
    return code;
}

uint32_t lil_text_order(uint32_t code) {
    for (size_t i = 0; i < lil_text_orders_count; i++) {
        if (lil_text_orders[i][0] <= code && code <= lil_text_orders[i][1]) {
            return lil_text_orders[i][2];
        }
    }
    return 0;
}
