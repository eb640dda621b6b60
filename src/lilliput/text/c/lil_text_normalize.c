/* BertNormalizer. What remains of canonical ordering (The Unicode Standard, section 3.11, D109) after non-spacing marks
 * are gone: runs of other combining characters, nearly always of one, are sorted by their class. */
#include "lil_text_core.h"

#include <string.h>

#define MAX_GROWTH 3 /* bytes for one: U+1D160 and its like; precomposed syllables of Hangul */
#define SPARE 16     /* more than one character writes, and room to sort a run in */

typedef struct output {
    const lil_text_normalizer *normalizer;
    uint8_t *text;
    size_t at, capacity;
    size_t run;          /* where the present run of combining characters starts, */
    uint32_t last_order; /* the class of its last one, 0 if it is empty, */
    bool unsorted;       /* and whether it has to be sorted */
} output;

size_t lil_text_normalized_bytes(size_t bytes) {
    return bytes > (SIZE_MAX - SPARE) / MAX_GROWTH ? SIZE_MAX : bytes * MAX_GROWTH + SPARE;
}

/* Stable, class by class, by way of the free memory behind the text; there are about ten classes. */
static void sort_run(output *out) {
    const size_t bytes = out->at - out->run;
    uint8_t *run = out->text + out->run, *sorted = out->text + out->at;
    if (bytes > out->capacity - out->at) {
        return; /* cannot be: see MAX_GROWTH */
    }
    uint32_t order = 0;
    for (size_t done = 0; done < bytes;) {
        uint32_t next = UINT32_MAX, code;
        for (size_t i = 0, length; i < bytes; i += length) {
            length = lil_text_decode(run + i, bytes - i, &code);
            const uint32_t its = lil_text_order(code);
            if (its == order) {
                memcpy(sorted + done, run + i, length);
                done += length;
            } else if (its > order && its < next) {
                next = its;
            }
        }
        order = next;
    }
    memcpy(run, sorted, bytes);
}

static void end_run(output *out) {
    if (out->unsorted) {
        sort_run(out);
    }
    out->last_order = 0;
    out->unsorted = false;
}

static void put(output *out, uint32_t code) {
    if (out->normalizer->lowercase) {
        if (code == 0x130) {
            out->text[out->at++] = 'i';
            code = 0x307;
        } else {
            code = lil_text_lower(code);
        }
    }
    out->at += lil_text_put(out->text + out->at, code);
}

/* Put a character into the present run, or end that. */
static void put_in_order(output *out, uint32_t code, uint32_t property) {
    if (property & LIL_CHAR_COMBINING) {
        const uint32_t order = lil_text_order(code);
        if (out->last_order == 0) {
            out->run = out->at;
        }
        out->unsorted |= order < out->last_order;
        out->last_order = order;
    } else {
        end_run(out);
    }
    put(out, code);
}

static void put_stripped(output *out, uint32_t code, uint32_t property) {
    if (property & LIL_CHAR_MARK) {
        if (!(property & LIL_CHAR_COMBINING)) {
            end_run(out);
        }
        return;
    }
    if (!(property & LIL_CHAR_DECOMPOSED)) {
        put_in_order(out, code, property);
        return;
    }
    uint32_t left[3];
    const size_t count = lil_text_strip(code, left);
    for (size_t i = 0; i < count; i++) {
        put_in_order(out, left[i], lil_text_property(left[i]));
    }
}

static void put_normalized(output *out, uint32_t code) {
    const lil_text_normalizer *normalizer = out->normalizer;
    uint32_t property = lil_text_property(code);
    if (normalizer->clean_text) {
        if (property & LIL_CHAR_REMOVED) {
            return;
        }
        if (property & LIL_CHAR_SPACE) {
            code = ' ';
            property = LIL_CHAR_SPACE;
        }
    }
    const bool apart = normalizer->handle_chinese_chars && (property & LIL_CHAR_CJK);
    if (apart) {
        end_run(out);
        out->text[out->at++] = ' ';
    }
    if (normalizer->strip_accents) {
        put_stripped(out, code, property);
    } else {
        put(out, code);
    }
    if (apart) {
        end_run(out);
        out->text[out->at++] = ' ';
    }
}

void lil_text_fill_ascii(const lil_text_normalizer *normalizer, uint8_t ascii[128]) {
    for (uint32_t code = 0; code < 128; code++) {
        uint8_t text[SPARE];
        output out = {.normalizer = normalizer, .text = text, .capacity = sizeof text};
        put_normalized(&out, code);
        ascii[code] = out.at == 0 ? LIL_TEXT_REMOVED : text[0];
    }
}

size_t lil_text_normalize_by(const lil_text_normalizer *normalizer, const uint8_t ascii[128], const uint8_t *text,
                             size_t bytes, uint8_t *out_text, size_t capacity) {
    output out = {.normalizer = normalizer, .text = out_text, .capacity = capacity};
    for (size_t at = 0; at < bytes;) {
        if (capacity - out.at < SPARE) {
            return SIZE_MAX;
        }
        const uint8_t byte = text[at];
        if (byte < 0x80) {
            const uint8_t put_byte = ascii[byte];
            at++;
            if (put_byte != LIL_TEXT_REMOVED) {
                if (out.last_order != 0) {
                    end_run(&out);
                }
                out.text[out.at++] = put_byte;
            }
        } else {
            uint32_t code;
            at += lil_text_decode(text + at, bytes - at, &code);
            put_normalized(&out, code);
        }
    }
    end_run(&out);
    return out.at;
}

size_t lil_text_normalize(const lil_text_normalizer *normalizer, const uint8_t *text, size_t bytes, uint8_t *out,
                          size_t capacity) {
    if (normalizer == NULL || text == NULL || out == NULL || capacity < lil_text_normalized_bytes(bytes)) {
        return SIZE_MAX;
    }
    uint8_t ascii[128];
    lil_text_fill_ascii(normalizer, ascii);
    return lil_text_normalize_by(normalizer, ascii, text, bytes, out, capacity);
}
