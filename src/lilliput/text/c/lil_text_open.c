/* Opening a tokenizer: every count and index is checked, and the hash tables are built. */
#include "lil_text_core.h"

#include <string.h>

#define MAX_PROBES 1024 /* more in a row means that somebody has chosen tokens with equal hashes */

static lil_text_status refuse(lil_text *tokenizer, lil_text_status status, size_t where) {
    tokenizer->where = (uint32_t)where;
    return status;
}

/* The smallest b with 2^b >= 2 * count. */
static uint32_t bits_for(uint32_t count) {
    uint32_t bits = 1;
    while (((uint64_t)1 << bits) < 2 * (uint64_t)count) {
        bits++;
    }
    return bits;
}

static bool counts_fit(const lil_text_settings *settings) {
    return settings->num_tokens > 0 && settings->num_tokens <= LIL_TEXT_MAX_TOKENS && settings->model_tokens > 0 &&
           settings->model_tokens <= settings->num_tokens && settings->num_merges <= LIL_TEXT_MAX_TOKENS &&
           settings->text_bytes <= LIL_TEXT_MAX_BYTES && settings->raw.count <= LIL_TEXT_MAX_TOKENS &&
           settings->normalized.count <= LIL_TEXT_MAX_TOKENS && settings->num_prefix <= LIL_TEXT_MAX_TOKENS &&
           settings->num_suffix <= LIL_TEXT_MAX_TOKENS;
}

static size_t slots_bytes(const lil_text_settings *settings) {
    return sizeof(lil_text_slot) << bits_for(settings->model_tokens);
}

size_t lil_text_table_bytes(const lil_text_settings *settings) {
    if (settings == NULL || !counts_fit(settings)) {
        return 0;
    }
    return slots_bytes(settings) + (sizeof(lil_text_pair) << bits_for(settings->num_merges));
}

uint32_t lil_text_find(const lil_text *tokenizer, uint64_t hash, const uint8_t *first, size_t first_bytes,
                       const uint8_t *second, size_t second_bytes) {
    const lil_text_settings *settings = &tokenizer->settings;
    const size_t mask = ((size_t)1 << tokenizer->slot_bits) - 1, bytes = first_bytes + second_bytes;
    for (size_t i = lil_text_spread(hash, tokenizer->slot_bits);; i = (i + 1) & mask) {
        const lil_text_slot slot = tokenizer->slots[i];
        if (slot.id == LIL_TEXT_NONE) {
            return LIL_TEXT_NONE;
        }
        if (slot.tag == (uint32_t)hash) {
            const size_t start = lil_text_token_start(settings, slot.id);
            const uint8_t *token = settings->text + start;
            if (settings->ends[slot.id] - start == bytes && memcmp(token, first, first_bytes) == 0 &&
                memcmp(token + first_bytes, second, second_bytes) == 0) {
                return slot.id;
            }
        }
    }
}

lil_text_pair lil_text_find_pair(const lil_text *tokenizer, uint32_t left, uint32_t right) {
    const size_t mask = ((size_t)1 << tokenizer->pair_bits) - 1;
    for (size_t i = lil_text_spread((uint64_t)left << 32 | right, tokenizer->pair_bits);; i = (i + 1) & mask) {
        const lil_text_pair pair = tokenizer->pairs[i];
        if (pair.rank == LIL_TEXT_NONE || (pair.left == left && pair.right == right)) {
            return pair;
        }
    }
}

static lil_text_status fill_slots(lil_text *tokenizer, lil_text_slot *slots) {
    const lil_text_settings *settings = &tokenizer->settings;
    const size_t mask = ((size_t)1 << tokenizer->slot_bits) - 1;
    memset(slots, 0xFF, slots_bytes(settings)); /* LIL_TEXT_NONE */
    for (uint32_t id = 0, start = 0; id < settings->num_tokens; id++) {
        const uint32_t end = settings->ends[id];
        if (end <= start || end > settings->text_bytes) {
            return refuse(tokenizer, LIL_TEXT_BAD_END, id);
        }
        if (id < settings->model_tokens) {
            uint64_t hash = LIL_TEXT_HASH_START;
            for (uint32_t i = start; i < end; i++) {
                hash = lil_text_hash(hash, settings->text[i]);
            }
            size_t probes = 0, i = lil_text_spread(hash, tokenizer->slot_bits);
            for (; slots[i].id != LIL_TEXT_NONE; i = (i + 1) & mask) {
                const uint32_t other = (uint32_t)lil_text_token_start(settings, slots[i].id);
                if (slots[i].tag == (uint32_t)hash && settings->ends[slots[i].id] - other == end - start &&
                    memcmp(settings->text + other, settings->text + start, end - start) == 0) {
                    return refuse(tokenizer, LIL_TEXT_DUPLICATE, id);
                }
                if (++probes > MAX_PROBES) {
                    return refuse(tokenizer, LIL_TEXT_COLLISIONS, id);
                }
            }
            slots[i] = (lil_text_slot){id, (uint32_t)hash};
            if (end - start > tokenizer->longest) {
                tokenizer->longest = end - start;
            }
        }
        start = end;
    }
    return LIL_TEXT_OK;
}

static lil_text_status fill_pairs(lil_text *tokenizer, lil_text_pair *pairs) {
    const lil_text_settings *settings = &tokenizer->settings;
    const size_t mask = ((size_t)1 << tokenizer->pair_bits) - 1;
    memset(pairs, 0xFF, sizeof *pairs << tokenizer->pair_bits); /* LIL_TEXT_NONE */
    for (uint32_t rank = 0; rank < settings->num_merges; rank++) {
        const uint32_t left = settings->merges[2 * (size_t)rank], right = settings->merges[2 * (size_t)rank + 1];
        if (left >= settings->model_tokens || right >= settings->model_tokens) {
            return refuse(tokenizer, LIL_TEXT_BAD_MERGE, rank);
        }
        const size_t a = lil_text_token_start(settings, left), b = lil_text_token_start(settings, right);
        const size_t a_end = settings->ends[left], b_end = settings->ends[right];
        uint64_t hash = LIL_TEXT_HASH_START;
        for (size_t i = a; i < a_end; i++) {
            hash = lil_text_hash(hash, settings->text[i]);
        }
        for (size_t i = b; i < b_end; i++) {
            hash = lil_text_hash(hash, settings->text[i]);
        }
        const uint32_t id =
            lil_text_find(tokenizer, hash, settings->text + a, a_end - a, settings->text + b, b_end - b);
        size_t probes = 0, i = lil_text_spread((uint64_t)left << 32 | right, tokenizer->pair_bits);
        for (; pairs[i].rank != LIL_TEXT_NONE; i = (i + 1) & mask) {
            if (pairs[i].left == left && pairs[i].right == right) {
                return refuse(tokenizer, LIL_TEXT_BAD_MERGE, rank);
            }
            if (++probes > MAX_PROBES) {
                return refuse(tokenizer, LIL_TEXT_COLLISIONS, rank);
            }
        }
        if (id == LIL_TEXT_NONE) {
            return refuse(tokenizer, LIL_TEXT_BAD_MERGE, rank);
        }
        pairs[i] = (lil_text_pair){left, right, rank, id};
    }
    return LIL_TEXT_OK;
}

/* GPT-2 writes the bytes that print in Latin-1 as that character, and the n-th other one as U+0100 + n. */
static lil_text_status find_bytes(lil_text *tokenizer) {
    uint32_t others = 0;
    for (uint32_t byte = 0; byte < 256; byte++) {
        const bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
        uint8_t text[4];
        const size_t bytes = lil_text_put(text, prints ? byte : 0x100 + others++);
        uint64_t hash = LIL_TEXT_HASH_START;
        for (size_t i = 0; i < bytes; i++) {
            hash = lil_text_hash(hash, text[i]);
        }
        tokenizer->bytes[byte] = lil_text_find(tokenizer, hash, text, bytes, text, 0);
        if (tokenizer->bytes[byte] == LIL_TEXT_NONE) {
            return refuse(tokenizer, LIL_TEXT_MISSING_BYTE, byte);
        }
    }
    return LIL_TEXT_OK;
}

static bool ascends(const lil_text_added *first, const lil_text_added *second) {
    const uint32_t common = first->bytes < second->bytes ? first->bytes : second->bytes;
    const int order = memcmp(first->text, second->text, common);
    return order < 0 || (order == 0 && first->bytes < second->bytes);
}

static lil_text_status check_added(lil_text *tokenizer, const lil_text_added_list *list, uint8_t starts[256]) {
    memset(starts, 0, 256);
    if (list->count > 0 && list->tokens == NULL) {
        return LIL_TEXT_NULL_ARGUMENT;
    }
    for (uint32_t i = 0; i < list->count; i++) {
        const lil_text_added *token = &list->tokens[i];
        if (token->text == NULL) {
            return LIL_TEXT_NULL_ARGUMENT;
        }
        if (token->bytes == 0 || (i > 0 && !ascends(token - 1, token))) {
            return refuse(tokenizer, LIL_TEXT_BAD_ADDED, i);
        }
        if (token->id >= tokenizer->settings.num_tokens) {
            return refuse(tokenizer, LIL_TEXT_BAD_ID, token->id);
        }
        starts[token->text[0]] = 1;
    }
    return LIL_TEXT_OK;
}

static lil_text_status check_ids(lil_text *tokenizer, const uint32_t *ids, uint32_t count) {
    if (count > 0 && ids == NULL) {
        return LIL_TEXT_NULL_ARGUMENT;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] >= tokenizer->settings.num_tokens) {
            return refuse(tokenizer, LIL_TEXT_BAD_ID, ids[i]);
        }
    }
    return LIL_TEXT_OK;
}

static lil_text_status check_lists(lil_text *tokenizer) {
    const lil_text_settings *settings = &tokenizer->settings;
    lil_text_status status = check_ids(tokenizer, settings->prefix, settings->num_prefix);
    if (status == LIL_TEXT_OK) {
        status = check_ids(tokenizer, settings->suffix, settings->num_suffix);
    }
    if (status == LIL_TEXT_OK) {
        status = check_added(tokenizer, &settings->raw, tokenizer->raw_starts);
    }
    if (status == LIL_TEXT_OK) {
        status = check_added(tokenizer, &settings->normalized, tokenizer->normalized_starts);
    }
    return status;
}

static bool misaligned(const void *memory, size_t alignment) { return (uintptr_t)memory % alignment != 0; }

static lil_text_status check_memory(const lil_text_settings *settings, const void *table, size_t table_bytes) {
    if (settings->text == NULL || settings->ends == NULL || (settings->num_merges > 0 && settings->merges == NULL)) {
        return LIL_TEXT_NULL_ARGUMENT;
    }
    if (!counts_fit(settings)) {
        return LIL_TEXT_BAD_COUNT;
    }
    if (table_bytes < lil_text_table_bytes(settings)) {
        return LIL_TEXT_TABLE_SMALL;
    }
    if (misaligned(table, LIL_TEXT_ALIGNMENT) || misaligned(settings->ends, sizeof(uint32_t)) ||
        misaligned(settings->merges, sizeof(uint32_t))) {
        return LIL_TEXT_MISALIGNED;
    }
    return LIL_TEXT_OK;
}

static lil_text_status open_bpe(lil_text *tokenizer, lil_text_pair *pairs) {
    const lil_text_status status = find_bytes(tokenizer);
    return status == LIL_TEXT_OK ? fill_pairs(tokenizer, pairs) : status;
}

lil_text_status lil_text_open(lil_text *tokenizer, const lil_text_settings *settings, void *table,
                              size_t table_bytes) {
    if (tokenizer == NULL || settings == NULL || table == NULL) {
        return LIL_TEXT_NULL_ARGUMENT;
    }
    memset(tokenizer, 0, sizeof *tokenizer);
    lil_text_status status = check_memory(settings, table, table_bytes);
    if (status != LIL_TEXT_OK) {
        return status;
    }
    lil_text_pair *pairs = (lil_text_pair *)((uint8_t *)table + slots_bytes(settings));
    tokenizer->settings = *settings;
    tokenizer->slots = table;
    tokenizer->pairs = pairs;
    tokenizer->slot_bits = bits_for(settings->model_tokens);
    tokenizer->pair_bits = bits_for(settings->num_merges);
    for (uint32_t code = 0; code < 128; code++) {
        tokenizer->properties[code] = (uint16_t)lil_text_property(code);
    }
    status = check_lists(tokenizer);
    if (status == LIL_TEXT_OK) {
        status = fill_slots(tokenizer, table);
    }
    if (status != LIL_TEXT_OK) {
        return status;
    }
    switch (settings->kind) {
    case LIL_TEXT_WORDPIECE:
        lil_text_fill_ascii(&settings->normalizer, tokenizer->ascii);
        return check_ids(tokenizer, &settings->unk, 1);
    case LIL_TEXT_BYTE_LEVEL_BPE: return open_bpe(tokenizer, pairs);
    }
    return LIL_TEXT_BAD_KIND;
}
