/* Encoding: added tokens are found first, the model does what lies between them, prefix and suffix go around it. */
#include "lil_text_core.h"

#include <string.h>

/* One call of lil_text_encode. */
typedef struct encoding {
    const lil_text *tokenizer;
    lil_text_sink *sink;
    void *work;       /* the model's */
    uint8_t *scratch; /* for a normalized text (WordPiece), or one with a space before it (BPE) */
    size_t scratch_bytes;
} encoding;

/* Where an added token was found: [start, end), and which it is. */
typedef struct match {
    size_t start, end;
    const lil_text_added *token;
} match;

typedef void (*between)(encoding *run, const uint8_t *text, size_t bytes);

/* The longest token of the list that starts at `text`: in the part of the list that agrees with the text so far, the
 * next byte is looked up by bisection. */
static const lil_text_added *longest_added(const lil_text_added_list *list, const uint8_t *text, size_t bytes) {
    const lil_text_added *found = NULL;
    uint32_t low = 0, high = list->count;
    for (size_t depth = 0; low < high; depth++) {
        if (list->tokens[low].bytes == depth) { /* the shortest comes first, and each is there once */
            found = &list->tokens[low++];
        }
        if (depth == bytes) {
            break;
        }
        uint32_t bounds[2]; /* of the tokens with this byte at this depth */
        for (int side = 0; side < 2; side++) {
            const int byte = text[depth] + side;
            uint32_t a = side == 0 ? low : bounds[0], b = high;
            while (a < b) {
                const uint32_t middle = a + (b - a) / 2;
                if (list->tokens[middle].text[depth] < byte) {
                    a = middle + 1;
                } else {
                    b = middle;
                }
            }
            bounds[side] = a;
        }
        low = bounds[0];
        high = bounds[1];
    }
    return found;
}

static bool find_added(const lil_text_added_list *list, const uint8_t starts[256], const uint8_t *text, size_t bytes,
                       match *found) {
    for (size_t at = found->end; at < bytes; at++) {
        if (starts[text[at]]) {
            found->token = longest_added(list, text + at, bytes - at);
            if (found->token != NULL) {
                found->start = at;
                found->end = at + found->token->bytes;
                return true;
            }
        }
    }
    return false;
}

static bool has_property(const lil_text *tokenizer, uint32_t code, uint32_t property) {
    return (lil_text_property_of(tokenizer, code) & property) != 0;
}

/* Whether no character of a word touches the match. */
static bool stands_alone(const lil_text *tokenizer, const uint8_t *text, size_t bytes, const match *found) {
    if (found->start > 0 && has_property(tokenizer, lil_text_decode_before(text, found->start), LIL_CHAR_WORD)) {
        return false;
    }
    uint32_t code;
    if (found->end == bytes) {
        return true;
    }
    lil_text_decode(text + found->end, bytes - found->end, &code);
    return !has_property(tokenizer, code, LIL_CHAR_WORD);
}

/* The start of the white space that ends at `at`, not before `from`. */
static size_t space_before(const lil_text *tokenizer, const uint8_t *text, size_t from, size_t at) {
    while (at > from && has_property(tokenizer, lil_text_decode_before(text, at), LIL_CHAR_SPACE)) {
        do {
            at--;
        } while (at > from && lil_text_continues(text[at]));
    }
    return at;
}

static size_t space_behind(const lil_text *tokenizer, const uint8_t *text, size_t bytes, size_t at) {
    while (at < bytes) {
        uint32_t code;
        const size_t length = lil_text_decode(text + at, bytes - at, &code);
        if (!has_property(tokenizer, code, LIL_CHAR_SPACE)) {
            break;
        }
        at += length;
    }
    return at;
}

/* Push the id of each added token of the list that is in the text, and hand what lies between them to `rest`. A token
 * may start in the white space that the one before it has swallowed: it counts all the same, unless it swallows what is
 * before it, and nothing of it is left. */
static void split(encoding *run, const lil_text_added_list *list, const uint8_t starts[256], const uint8_t *text,
                  size_t bytes, between rest) {
    const lil_text *tokenizer = run->tokenizer;
    size_t done = 0;
    match found = {0};
    while (run->sink->count < run->sink->limit && find_added(list, starts, text, bytes, &found)) {
        if (found.token->single_word && !stands_alone(tokenizer, text, bytes, &found)) {
            continue;
        }
        size_t start = found.start, end = found.end;
        if (found.token->lstrip) {
            start = start > done ? space_before(tokenizer, text, done, start) : done;
        }
        if (found.token->rstrip) {
            end = space_behind(tokenizer, text, bytes, end > done ? end : done);
        }
        if (done < start) {
            rest(run, text + done, start - done);
        }
        if (start < end) {
            lil_text_push(run->sink, found.token->id);
        }
        done = end;
    }
    if (done < bytes && run->sink->count < run->sink->limit) {
        rest(run, text + done, bytes - done);
    }
}

static void add_wordpiece(encoding *run, const uint8_t *text, size_t bytes) {
    lil_text_wordpiece(run->tokenizer, text, bytes, run->work, run->sink);
}

static void add_bpe(encoding *run, const uint8_t *text, size_t bytes) {
    if (run->tokenizer->settings.add_prefix_space && text[0] != ' ') {
        run->scratch[0] = ' ';
        memcpy(run->scratch + 1, text, bytes++);
        text = run->scratch;
    }
    lil_text_byte_level_bpe(run->tokenizer, text, bytes, run->work, run->sink);
}

/* What lies between the added tokens of the text as it is. */
static void add_raw(encoding *run, const uint8_t *text, size_t bytes) {
    const lil_text *tokenizer = run->tokenizer;
    const bool wordpiece = tokenizer->settings.kind == LIL_TEXT_WORDPIECE;
    if (wordpiece) {
        bytes = lil_text_normalize_by(&tokenizer->settings.normalizer, tokenizer->ascii, text, bytes, run->scratch,
                                      run->scratch_bytes);
        text = run->scratch;
        if (bytes > run->scratch_bytes) {
            return; /* cannot be: the scratch has lil_text_normalized_bytes */
        }
    }
    split(run, &tokenizer->settings.normalized, tokenizer->normalized_starts, text, bytes,
          wordpiece ? add_wordpiece : add_bpe);
}

static size_t model_bytes(const lil_text *tokenizer, size_t text_bytes) {
    return tokenizer->settings.kind == LIL_TEXT_WORDPIECE ? lil_text_wordpiece_bytes(tokenizer)
                                                          : lil_text_byte_level_bpe_bytes(text_bytes + 1);
}

static size_t scratch_bytes(const lil_text *tokenizer, size_t text_bytes) {
    return tokenizer->settings.kind == LIL_TEXT_WORDPIECE ? lil_text_normalized_bytes(text_bytes) : text_bytes + 1;
}

size_t lil_text_work_bytes(const lil_text *tokenizer, size_t text_bytes) {
    if (text_bytes > LIL_TEXT_MAX_BYTES) {
        return 0; /* lil_text_encode will say so */
    }
    return model_bytes(tokenizer, text_bytes) + scratch_bytes(tokenizer, text_bytes);
}

size_t lil_text_capacity(const lil_text *tokenizer, size_t text_bytes, uint32_t max_tokens) {
    /* At most one token a normalized byte; a byte of BPE may be an added token, and bring a space before the next. */
    const size_t around = (size_t)tokenizer->settings.num_prefix + tokenizer->settings.num_suffix;
    const size_t most = text_bytes > LIL_TEXT_MAX_BYTES ? 0 : lil_text_normalized_bytes(text_bytes) + around;
    return most < max_tokens ? most : max_tokens;
}

lil_text_status lil_text_encode(const lil_text *tokenizer, const uint8_t *text, size_t text_bytes, uint32_t max_tokens,
                                uint32_t *ids, size_t capacity, size_t *count, void *work, size_t work_bytes) {
    if (tokenizer == NULL || text == NULL || ids == NULL || count == NULL || work == NULL) {
        return LIL_TEXT_NULL_ARGUMENT;
    }
    const lil_text_settings *settings = &tokenizer->settings;
    if (text_bytes > LIL_TEXT_MAX_BYTES) {
        return LIL_TEXT_TOO_LONG;
    }
    if ((uint64_t)settings->num_prefix + settings->num_suffix > max_tokens) {
        return LIL_TEXT_FEW_TOKENS;
    }
    if (capacity < lil_text_capacity(tokenizer, text_bytes, max_tokens)) {
        return LIL_TEXT_OUTPUT_SMALL;
    }
    if (work_bytes < lil_text_work_bytes(tokenizer, text_bytes)) {
        return LIL_TEXT_WORK_SMALL;
    }
    if ((uintptr_t)work % LIL_TEXT_ALIGNMENT != 0) {
        return LIL_TEXT_MISALIGNED;
    }
    lil_text_sink sink = {ids, 0, capacity < max_tokens ? capacity : max_tokens};
    sink.limit -= settings->num_suffix;
    for (uint32_t i = 0; i < settings->num_prefix; i++) {
        lil_text_push(&sink, settings->prefix[i]);
    }
    encoding run = {tokenizer, &sink, work, (uint8_t *)work + model_bytes(tokenizer, text_bytes),
                    scratch_bytes(tokenizer, text_bytes)};
    split(&run, &settings->raw, tokenizer->raw_starts, text, text_bytes, add_raw);
    if (sink.count > sink.limit) {
        sink.count = sink.limit;
    }
    sink.limit += settings->num_suffix;
    for (uint32_t i = 0; i < settings->num_suffix; i++) {
        lil_text_push(&sink, settings->suffix[i]);
    }
    *count = sink.count;
    return LIL_TEXT_OK;
}
