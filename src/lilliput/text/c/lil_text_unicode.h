/* Characters: UTF-8, properties and maps. Internal. */
#ifndef LIL_TEXT_UNICODE_H
#define LIL_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Properties of a character, the lower 11 bits of an entry of lil_text_properties. */
enum {
    LIL_CHAR_LETTER = 1 << 0,      /* \p{L} */
    LIL_CHAR_NUMBER = 1 << 1,      /* \p{N} */
    LIL_CHAR_SPACE = 1 << 2,       /* white space */
    LIL_CHAR_WORD = 1 << 3,        /* \w */
    LIL_CHAR_REMOVED = 1 << 4,     /* clean_text drops it: a control character, or U+FFFD */
    LIL_CHAR_PUNCTUATION = 1 << 5, /* a word by itself for BertPreTokenizer */
    LIL_CHAR_CJK = 1 << 6,         /* an ideograph: handle_chinese_chars sets it apart */
    LIL_CHAR_MARK = 1 << 7,        /* strip_accents drops it */
    LIL_CHAR_COMBINING = 1 << 8,   /* its canonical combining class is not 0 */
    LIL_CHAR_DECOMPOSED = 1 << 9,  /* strip_accents makes something else of it */
    LIL_CHAR_BITS = 11,
};

#define LIL_CHAR_REPLACEMENT 0xFFFDu

/* Written by tests/text/make_tables.py, all ascending. */
extern const uint32_t lil_text_properties[];       /* code << 11 | bits, valid up to the next entry's code */
extern const uint64_t lil_text_stripped[];         /* code << 24 | the one character that is left of it */
extern const uint32_t lil_text_stripped_long[][4]; /* code, the two or three that are left, 0 behind them */
extern const uint32_t lil_text_lowered[][4];       /* first, last, step, what to add (modulo 2^32) */
extern const uint32_t lil_text_orders[][3];        /* first, last, combining class, of those that are not dropped */
extern const size_t lil_text_properties_count, lil_text_stripped_count, lil_text_stripped_long_count;
extern const size_t lil_text_lowered_count, lil_text_orders_count;

/* Bits of LIL_CHAR_* for any number; those above U+10FFFF have what that one has. */
uint32_t lil_text_property(uint32_t code);

/* What canonical decomposition without marks leaves of a LIL_CHAR_DECOMPOSED, up to three, into `left`; returns how
 * many. */
size_t lil_text_strip(uint32_t code, uint32_t left[3]);

/* The lower case of a character; U+0130, whose lower case is two characters, gives itself. */
uint32_t lil_text_lower(uint32_t code);

/* The combining class of a LIL_CHAR_COMBINING that is not LIL_CHAR_MARK. */
uint32_t lil_text_order(uint32_t code);

static inline bool lil_text_continues(uint8_t byte) { return (byte & 0xC0) == 0x80; }

/* Decode the character at text[0], bytes >= 1 of them, into `code`; returns the bytes it takes, 1 to 4. A byte that
 * starts nothing valid is LIL_CHAR_REPLACEMENT. Overlong forms and surrogates are not told apart: they do no harm. */
static inline size_t lil_text_decode(const uint8_t *text, size_t bytes, uint32_t *code) {
    const uint8_t lead = text[0];
    if (lead < 0x80) {
        *code = lead;
        return 1;
    }
    const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead >= 0xC0 && lead < 0xF8 && length <= bytes) {
        uint32_t value = lead & (0x7Fu >> length);
        size_t i = 1;
        for (; i < length && lil_text_continues(text[i]); i++) {
            value = value << 6 | (text[i] & 0x3Fu);
        }
        if (i == length && value < 0x110000) {
            *code = value;
            return length;
        }
    }
    *code = LIL_CHAR_REPLACEMENT;
    return 1;
}

/* The character that ends right before text[at], at >= 1. */
static inline uint32_t lil_text_decode_before(const uint8_t *text, size_t at) {
    size_t start = at - 1;
    while (start > 0 && at - start < 4 && lil_text_continues(text[start])) {
        start--;
    }
    uint32_t code;
    return lil_text_decode(text + start, at - start, &code) == at - start ? code : LIL_CHAR_REPLACEMENT;
}

/* Encode a code below 0x110000; returns the bytes written, 1 to 4. */
static inline size_t lil_text_put(uint8_t *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    const size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--) {
        out[i] = (uint8_t)(0x80 | (code & 0x3F));
        code >>= 6;
    }
    out[0] = (uint8_t)((0xF00u >> length) | code);
    return length;
}

#endif
