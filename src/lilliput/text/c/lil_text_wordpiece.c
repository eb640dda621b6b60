/* BertPreTokenizer and WordPiece (Schuster and Nakajima, Japanese and Korean voice search, ICASSP 2012): the longest
 * token that starts the word, then the longest "##" token that starts the rest, and so on; or the word is unknown. */
#include "lil_text_core.h"

static const uint8_t CONTINUES[2] = {'#', '#'};

size_t lil_text_wordpiece_bytes(const lil_text *tokenizer) { return tokenizer->longest * sizeof(uint64_t); }

/* The longest token that starts at `text`: its id, and the bytes of `text` that it takes. */
static uint32_t longest_token(const lil_text *tokenizer, const uint8_t *text, size_t bytes, bool continues,
                              uint64_t *hashes, size_t *taken) {
    const size_t prefix = continues ? sizeof CONTINUES : 0;
    const size_t limit = bytes < tokenizer->longest ? bytes : tokenizer->longest;
    uint64_t hash = LIL_TEXT_HASH_START;
    for (size_t i = 0; i < prefix; i++) {
        hash = lil_text_hash(hash, CONTINUES[i]);
    }
    for (size_t i = 0; i < limit; i++) {
        hash = lil_text_hash(hash, text[i]);
        hashes[i] = hash;
    }
    for (size_t i = limit; i > 0; i--) {
        const uint32_t id = lil_text_find(tokenizer, hashes[i - 1], CONTINUES, prefix, text, i);
        if (id != LIL_TEXT_NONE) {
            *taken = i;
            return id;
        }
    }
    return LIL_TEXT_NONE;
}

static void add_word(const lil_text *tokenizer, const uint8_t *word, size_t bytes, size_t chars, uint64_t *hashes,
                     lil_text_sink *sink) {
    const size_t before = sink->count;
    bool known = chars <= tokenizer->settings.max_input_chars_per_word;
    for (size_t at = 0, taken = 0; known && at < bytes; at += taken) {
        const uint32_t id = longest_token(tokenizer, word + at, bytes - at, at > 0, hashes, &taken);
        known = id != LIL_TEXT_NONE;
        if (known) {
            lil_text_push(sink, id);
        }
    }
    if (!known) {
        sink->count = before;
        lil_text_push(sink, tokenizer->settings.unk);
    }
}

void lil_text_wordpiece(const lil_text *tokenizer, const uint8_t *text, size_t bytes, void *work, lil_text_sink *sink) {
    uint64_t *hashes = work;
    size_t start = 0, chars = 0; /* of the word that ends at `at` */
    for (size_t at = 0, length; at < bytes && sink->count < sink->limit; at += length) {
        uint32_t code;
        length = lil_text_decode(text + at, bytes - at, &code);
        const uint32_t property = lil_text_property_of(tokenizer, code);
        if (property & (LIL_CHAR_SPACE | LIL_CHAR_PUNCTUATION)) {
            if (chars > 0) {
                add_word(tokenizer, text + start, at - start, chars, hashes, sink);
            }
            if (property & LIL_CHAR_PUNCTUATION) {
                add_word(tokenizer, text + at, length, 1, hashes, sink);
            }
            start = at + length;
            chars = 0;
        } else {
            chars++;
        }
    }
    if (chars > 0 && sink->count < sink->limit) {
        add_word(tokenizer, text + start, bytes - start, chars, hashes, sink);
    }
}
