/* What the files of the tokenizers share. Internal. */
#ifndef LIL_TEXT_CORE_H
#define LIL_TEXT_CORE_H

#include "lil_text.h"
#include "lil_text_unicode.h"

#define LIL_TEXT_REMOVED 0xFF /* no ASCII character */

/* One entry of the table of tokens: open addressing, linear probing, at most half full. */
typedef struct lil_text_slot {
    uint32_t id;  /* LIL_TEXT_NONE: empty */
    uint32_t tag; /* the low half of the hash */
} lil_text_slot;

/* One entry of the table of merges, likewise. */
typedef struct lil_text_pair {
    uint32_t left, right;
    uint32_t rank; /* LIL_TEXT_NONE: empty */
    uint32_t id;   /* of the two together */
} lil_text_pair;

/* Ids on their way out. Those beyond `limit` are counted only, so that a word's last ones can be taken back. */
typedef struct lil_text_sink {
    uint32_t *ids;
    size_t count;
    size_t limit;
} lil_text_sink;

static inline void lil_text_push(lil_text_sink *sink, uint32_t id) {
    if (sink->count < sink->limit) {
        sink->ids[sink->count] = id;
    }
    sink->count++;
}

/* FNV-1a with 64 bits (Fowler, Noll, Vo), a byte at a time: prefixes of a word share their work. */
#define LIL_TEXT_HASH_START 0xCBF29CE484222325u
static inline uint64_t lil_text_hash(uint64_t hash, uint8_t byte) { return (hash ^ byte) * 0x100000001B3u; }

/* The upper `bits` of a product with 2^64 / golden ratio (Knuth, The Art of Computer Programming 3, section 6.4). */
static inline size_t lil_text_spread(uint64_t hash, uint32_t bits) {
    return (size_t)((hash * 0x9E3779B97F4A7C15u) >> (64 - bits));
}

static inline size_t lil_text_token_start(const lil_text_settings *settings, uint32_t id) {
    return id == 0 ? 0 : settings->ends[id - 1];
}

static inline uint32_t lil_text_property_of(const lil_text *tokenizer, uint32_t code) {
    return code < 128 ? tokenizer->properties[code] : lil_text_property(code);
}

/* The model's token that is `first` and `second` together, whose hash is `hash`; LIL_TEXT_NONE if there is none. */
uint32_t lil_text_find(const lil_text *tokenizer, uint64_t hash, const uint8_t *first, size_t first_bytes,
                       const uint8_t *second, size_t second_bytes);

/* The merge of two tokens; LIL_TEXT_NONE in `rank` if there is none. */
lil_text_pair lil_text_find_pair(const lil_text *tokenizer, uint32_t left, uint32_t right);

/* Ids of a normalized text without added tokens; stops early once the sink is full. `work` has the bytes that the next
 * two functions say. */
void lil_text_wordpiece(const lil_text *tokenizer, const uint8_t *text, size_t bytes, void *work, lil_text_sink *sink);
void lil_text_byte_level_bpe(const lil_text *tokenizer, const uint8_t *text, size_t bytes, void *work,
                             lil_text_sink *sink);

/* Bytes of work memory, a multiple of LIL_TEXT_ALIGNMENT, that the models need for `bytes` of text. */
size_t lil_text_wordpiece_bytes(const lil_text *tokenizer);
size_t lil_text_byte_level_bpe_bytes(size_t bytes);

/* lil_text_normalize by the table that lil_text_fill_ascii has made. */
void lil_text_fill_ascii(const lil_text_normalizer *normalizer, uint8_t ascii[128]);
size_t lil_text_normalize_by(const lil_text_normalizer *normalizer, const uint8_t ascii[128], const uint8_t *text,
                             size_t bytes, uint8_t *out_text, size_t capacity);

#endif
