/* Byte-level BPE: GPT-2's split into words, and merging by rank (Sennrich, Haddow and Birch, Neural Machine Translation
 * of Rare Words with Subword Units, ACL 2016; Radford et al., Language Models are Unsupervised Multitask Learners). */
#include "lil_text_core.h"

#include <string.h>

/* A word while its tokens merge: a linked list of symbols, and a tree of minima over the ranks of the pairs that start
 * at each symbol, so that every merge takes logarithmic time, whatever the word. All arrays are of symbols. */
typedef struct merging {
    const lil_text *tokenizer;
    uint32_t count, leaves;        /* symbols; leaves of the tree, a power of two */
    uint32_t *ids, *before, *next; /* `count`: none */
    uint32_t *merged;              /* id of the pair that starts here, where its rank is not LIL_TEXT_NONE */
    uint32_t *ranks;               /* [2 * leaves]: 1 is the root, the children of i are 2 * i and 2 * i + 1 */
} merging;

static uint32_t leaves_for(size_t count) {
    uint32_t leaves = 1;
    while (leaves < count) {
        leaves *= 2;
    }
    return leaves;
}

size_t lil_text_byte_level_bpe_bytes(size_t bytes) {
    return sizeof(uint32_t) * (4 * bytes + 2 * (size_t)leaves_for(bytes)) + LIL_TEXT_ALIGNMENT / 2;
}

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* The pair of symbol `i` and the one behind it: its rank, and what it merges to. */
static uint32_t pair_rank(merging *word, uint32_t i) {
    if (word->next[i] == word->count) {
        return LIL_TEXT_NONE;
    }
    const lil_text_pair pair = lil_text_find_pair(word->tokenizer, word->ids[i], word->ids[word->next[i]]);
    word->merged[i] = pair.id;
    return pair.rank;
}

static void set_rank(merging *word, uint32_t i, uint32_t rank) {
    size_t node = word->leaves + (size_t)i;
    word->ranks[node] = rank;
    for (node /= 2; node > 0; node /= 2) {
        word->ranks[node] = least(word->ranks[2 * node], word->ranks[2 * node + 1]);
    }
}

static void start_word(merging *word, const uint8_t *text) {
    for (uint32_t i = 0; i < word->count; i++) {
        word->ids[i] = word->tokenizer->bytes[text[i]];
        word->before[i] = i == 0 ? word->count : i - 1;
        word->next[i] = i + 1;
    }
    uint32_t *leaf = word->ranks + word->leaves;
    for (uint32_t i = 0; i < word->leaves; i++) {
        leaf[i] = i < word->count ? pair_rank(word, i) : LIL_TEXT_NONE;
    }
    for (size_t node = word->leaves - 1; node > 0; node--) {
        word->ranks[node] = least(word->ranks[2 * node], word->ranks[2 * node + 1]);
    }
}

/* The first symbol with the lowest rank. */
static uint32_t best_pair(const merging *word) {
    size_t node = 1;
    while (node < word->leaves) {
        node *= 2;
        node += word->ranks[node] != word->ranks[node / 2];
    }
    return (uint32_t)(node - word->leaves);
}

static void merge(merging *word, uint32_t i) {
    const uint32_t gone = word->next[i], after = word->next[gone], before = word->before[i];
    word->ids[i] = word->merged[i];
    word->next[i] = after;
    if (after != word->count) {
        word->before[after] = i;
    }
    set_rank(word, gone, LIL_TEXT_NONE);
    set_rank(word, i, pair_rank(word, i));
    if (before != word->count) {
        set_rank(word, before, pair_rank(word, before));
    }
}

static void add_word(const lil_text *tokenizer, const uint8_t *text, size_t bytes, uint32_t *work,
                     lil_text_sink *sink) {
    if (bytes == 1) {
        lil_text_push(sink, tokenizer->bytes[text[0]]);
        return;
    }
    merging word = {.tokenizer = tokenizer,
                    .count = (uint32_t)bytes,
                    .leaves = leaves_for(bytes),
                    .ids = work,
                    .before = work + bytes,
                    .next = work + 2 * bytes,
                    .merged = work + 3 * bytes,
                    .ranks = work + 4 * bytes};
    start_word(&word, text);
    while (word.ranks[1] != LIL_TEXT_NONE) {
        merge(&word, best_pair(&word));
    }
    for (uint32_t i = 0; i != word.count; i = word.next[i]) {
        lil_text_push(sink, word.ids[i]);
    }
}

/* Letters, numbers, white space, or none of these: what GPT-2's pattern tells apart. */
static uint32_t class_at(const lil_text *tokenizer, const uint8_t *text, size_t bytes, size_t at, size_t *length) {
    uint32_t code;
    *length = lil_text_decode(text + at, bytes - at, &code);
    return lil_text_property_of(tokenizer, code) & (LIL_CHAR_LETTER | LIL_CHAR_NUMBER | LIL_CHAR_SPACE);
}

/* Where the run of characters of the class of the one at `at` ends; `last`: where its last character starts. */
static size_t run_end(const lil_text *tokenizer, const uint8_t *text, size_t bytes, size_t at, size_t *last) {
    size_t length;
    const uint32_t class = class_at(tokenizer, text, bytes, at, &length);
    do {
        *last = at;
        at += length;
    } while (at < bytes && class_at(tokenizer, text, bytes, at, &length) == class);
    return at;
}

/* Bytes of 's 't 're 've 'm 'll 'd at an apostrophe, 0 if none of these. */
static size_t contraction(const uint8_t *text, size_t bytes) {
    if (bytes >= 2 && memchr("stmd", text[1], 4) != NULL) {
        return 2;
    }
    const bool two = bytes >= 3 && ((text[1] == 'r' && text[2] == 'e') || (text[1] == 'v' && text[2] == 'e') ||
                                    (text[1] == 'l' && text[2] == 'l'));
    return two ? 3 : 0;
}

/* Where the word that starts at `at` ends, by GPT-2's pattern
 * 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t word_end(const lil_text *tokenizer, const uint8_t *text, size_t bytes, size_t at) {
    if (text[at] == '\'') {
        const size_t length = contraction(text + at, bytes - at);
        if (length > 0) {
            return at + length;
        }
    }
    size_t length, last;
    const bool space = text[at] == ' ' && at + 1 < bytes;
    if (space && class_at(tokenizer, text, bytes, at + 1, &length) != LIL_CHAR_SPACE) {
        return run_end(tokenizer, text, bytes, at + 1, &last);
    }
    const bool white = class_at(tokenizer, text, bytes, at, &length) == LIL_CHAR_SPACE;
    const size_t end = run_end(tokenizer, text, bytes, at, &last);
    /* White space leaves its last character to the word behind it, unless it has only that one. */
    return white && end < bytes && last > at ? last : end;
}

void lil_text_byte_level_bpe(const lil_text *tokenizer, const uint8_t *text, size_t bytes, void *work,
                             lil_text_sink *sink) {
    if (!tokenizer->settings.use_regex) {
        add_word(tokenizer, text, bytes, work, sink);
        return;
    }
    for (size_t at = 0, end; at < bytes && sink->count < sink->limit; at = end) {
        end = word_end(tokenizer, text, bytes, at);
        add_word(tokenizer, text + at, end - at, work, sink);
    }
}
