/* Lilliput's tokenizers: from UTF-8 text to token ids, equal to those of Hugging Face's `tokenizers`. The only public
 * header of this folder.
 *
 * C11 and libc only. Nothing is allocated, nothing is kept between calls, nothing aborts: the caller owns all memory,
 * and every failure is a status code. Any bytes are safe as text, and any vocabulary, too.
 *
 *     lil_text_settings settings = {.kind = LIL_TEXT_WORDPIECE, ...};
 *     lil_text tokenizer;
 *     size_t bytes = lil_text_table_bytes(&settings);
 *     lil_text_status status = lil_text_open(&tokenizer, &settings, malloc(bytes), bytes);            once
 *     status = lil_text_encode(&tokenizer, text, text_bytes, max_tokens, ids, capacity, &count, work, work_bytes);
 *
 * Threads: after lil_text_open a tokenizer is never written again; any number of threads may use it at once, each with
 * ids and work memory of its own. */
#ifndef LIL_TEXT_H
#define LIL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LIL_TEXT_ALIGNMENT 8                    /* of the table and of the work memory */
#define LIL_TEXT_MAX_TOKENS ((uint32_t)1 << 24) /* in a vocabulary; as many merges and added tokens */
#define LIL_TEXT_MAX_BYTES ((size_t)1 << 26)    /* of one text, and of a vocabulary's text */
#define LIL_TEXT_NONE UINT32_MAX                /* no id */

/* Why a call was refused. For codes marked [token] and so on, lil_text.where holds the number of the one at fault. */
typedef enum lil_text_status {
    LIL_TEXT_OK = 0,
    /* Refused by lil_text_open. */
    LIL_TEXT_NULL_ARGUMENT,  /* a pointer is NULL (also lil_text_encode) */
    LIL_TEXT_BAD_KIND,       /* neither of the two */
    LIL_TEXT_BAD_COUNT,      /* no tokens, or more than the limits above, or model_tokens out of range */
    LIL_TEXT_BAD_END,        /* [token] empty, or its end is before its start or behind the text */
    LIL_TEXT_DUPLICATE,      /* [token] equal to one before it */
    LIL_TEXT_COLLISIONS,     /* [token] too many tokens or merges have the same hash; no honest file has */
    LIL_TEXT_BAD_ID,         /* [id] the unknown token's, an added token's, or one of prefix and suffix: out of range */
    LIL_TEXT_BAD_ADDED,      /* [added token] empty, or not behind the one before it in the order of bytes */
    LIL_TEXT_BAD_MERGE,      /* [merge] an id out of range, the two together are no token, or given twice */
    LIL_TEXT_MISSING_BYTE,   /* [byte] no token stands for this byte */
    LIL_TEXT_TABLE_SMALL,    /* fewer than lil_text_table_bytes */
    LIL_TEXT_MISALIGNED,     /* table or work memory not at a multiple of LIL_TEXT_ALIGNMENT, or ends, merges of 4 */
    /* Refused by lil_text_encode. */
    LIL_TEXT_TOO_LONG,       /* the text has more than LIL_TEXT_MAX_BYTES */
    LIL_TEXT_FEW_TOKENS,     /* max_tokens is less than prefix and suffix have */
    LIL_TEXT_OUTPUT_SMALL,   /* fewer than lil_text_capacity */
    LIL_TEXT_WORK_SMALL,     /* fewer than lil_text_work_bytes */
    LIL_TEXT_STATUS_COUNT
} lil_text_status;

typedef enum lil_text_kind {
    LIL_TEXT_WORDPIECE = 0,  /* BertNormalizer, BertPreTokenizer, WordPiece with "##" */
    LIL_TEXT_BYTE_LEVEL_BPE, /* ByteLevel, BPE; tokens are in GPT-2's printable alphabet for bytes */
} lil_text_kind;

/* A token that is found wherever it stands in the text, before the model sees it. `text` is what is looked for. */
typedef struct lil_text_added {
    const uint8_t *text;
    uint32_t bytes;   /* of `text`, at least 1 */
    uint32_t id;
    bool lstrip;      /* swallows the white space before it */
    bool rstrip;      /* and behind it */
    bool single_word; /* only where no letter, digit, mark or the like touches it */
} lil_text_added;

/* Added tokens, ascending by the bytes of `text`, each once. */
typedef struct lil_text_added_list {
    const lil_text_added *tokens;
    uint32_t count;
} lil_text_added_list;

/* How BertNormalizer treats a text: remove control characters and make white space a space; set ideographs apart;
 * decompose (NFD) and drop non-spacing marks; lower case. In this order. */
typedef struct lil_text_normalizer {
    bool clean_text;
    bool handle_chinese_chars;
    bool strip_accents;
    bool lowercase;
} lil_text_normalizer;

/* What a tokenizer is made of. Everything pointed to is borrowed: it stays where it is, unchanged, as long as the
 * tokenizer is used. */
typedef struct lil_text_settings {
    lil_text_kind kind;
    /* The vocabulary: the tokens' bytes one after another, and where each ends. Those of the model come first; behind
     * them may stand added tokens, which the model does not know. */
    const uint8_t *text;
    size_t text_bytes;
    const uint32_t *ends;
    uint32_t num_tokens;
    uint32_t model_tokens;
    const uint32_t *merges;              /* pairs of ids, the earliest to be merged first; BPE only */
    uint32_t num_merges;
    const uint32_t *prefix, *suffix;     /* ids before and behind every text */
    uint32_t num_prefix, num_suffix;
    lil_text_added_list raw;             /* added tokens that are looked for in the text as it is */
    lil_text_added_list normalized;      /* and, after them, in the normalized text; already normalized themselves */
    lil_text_normalizer normalizer;      /* WordPiece only */
    uint32_t unk;                        /* WordPiece only: id of a word that cannot be put together */
    uint32_t max_input_chars_per_word;   /* WordPiece only: longer words are unknown */
    bool add_prefix_space;               /* BPE only: a text, and what follows an added token, starts with a space */
    bool use_regex;                      /* BPE only: split into words as GPT-2 does */
} lil_text_settings;

struct lil_text_slot;
struct lil_text_pair;

/* An opened tokenizer. Set by lil_text_open; read it as you like, and never write it. After a refusal only `where`
 * means something. */
typedef struct lil_text {
    lil_text_settings settings;
    const struct lil_text_slot *slots; /* token -> id */
    const struct lil_text_pair *pairs; /* two ids -> rank and id of what they merge to */
    uint32_t slot_bits, pair_bits;     /* the tables have 2^bits entries */
    uint32_t longest;                  /* bytes of the model's longest token */
    uint32_t bytes[256];               /* id of each byte's token; BPE only */
    uint8_t raw_starts[256];           /* whether an added token starts with this byte */
    uint8_t normalized_starts[256];
    uint8_t ascii[128];                /* what each character is normalized to; LIL_TEXT_REMOVED for none */
    uint16_t properties[128];
    uint32_t where;                    /* after a refusal: see lil_text_status; otherwise 0 */
} lil_text;

/* Bytes of table that lil_text_open needs. 0 where the counts are out of range (it will say so). */
size_t lil_text_table_bytes(const lil_text_settings *settings);

/* Check all of `settings` and build the hash tables in `table`, the caller's, which belongs to the tokenizer from now
 * on, at a multiple of LIL_TEXT_ALIGNMENT. Some milliseconds for 30,000 tokens, linear in their bytes. Returns
 * LIL_TEXT_OK, or what is wrong. */
lil_text_status lil_text_open(lil_text *tokenizer, const lil_text_settings *settings, void *table, size_t table_bytes);

/* Bytes of work memory, and ids, that a text of `text_bytes` needs. What is not needed is not touched: only a BPE word
 * as long as the text takes all of the work memory. */
size_t lil_text_work_bytes(const lil_text *tokenizer, size_t text_bytes);
size_t lil_text_capacity(const lil_text *tokenizer, size_t text_bytes, uint32_t max_tokens);

/* Turn a text into ids.
 *
 * tokenizer   from a successful lil_text_open.
 * text        text_bytes of UTF-8, at any address. A byte that is no part of valid UTF-8 is taken for U+FFFD by
 *             WordPiece, and for a character that is no letter by BPE.
 * max_tokens  the longest result, prefix and suffix included; what is beyond is cut from the end of the text.
 * ids         capacity >= lil_text_capacity of them; `count` receives how many were written.
 * work        work_bytes >= lil_text_work_bytes at a multiple of LIL_TEXT_ALIGNMENT.
 * Returns LIL_TEXT_OK or one of lil_text_encode's codes. Thread-safe for different outputs and work memory. Time grows
 * with the text's bytes (BPE: times the logarithm of the longest word). */
lil_text_status lil_text_encode(const lil_text *tokenizer, const uint8_t *text, size_t text_bytes, uint32_t max_tokens,
                                uint32_t *ids, size_t capacity, size_t *count, void *work, size_t work_bytes);

/* Bytes that a normalized text of `bytes` may take, and normalizing it: into `out`, `capacity` bytes of it. Returns the
 * bytes written, or SIZE_MAX where `capacity` is less than lil_text_normalized_bytes or an argument is NULL. */
size_t lil_text_normalized_bytes(size_t bytes);
size_t lil_text_normalize(const lil_text_normalizer *normalizer, const uint8_t *text, size_t bytes, uint8_t *out,
                          size_t capacity);

/* One English line for a status, without a final stop; never NULL, static, also for values outside the enum. */
const char *lil_text_status_message(lil_text_status status);

/* What lil_text.where counts for a status: "token", "id", "merge" ...; NULL where it counts nothing. */
const char *lil_text_status_record(lil_text_status status);

#ifdef __cplusplus
}
#endif
#endif
