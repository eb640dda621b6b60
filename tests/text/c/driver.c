/* Random tokenizers, valid and not, on random bytes. All memory has exactly the bytes that the core asks for, so that
 * the address sanitizer sees each one too many. Prints how often each status was returned by lil_text_open, then by
 * lil_text_encode. */
#include "lil_text.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LENGTH = 12, MAX_ADDED = 6, MAX_TEXT = 400 };

static uint64_t state;

static uint32_t below(uint32_t limit) { /* Marsaglia, Xorshift RNGs (2003) */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % limit;
}

static bool one_in(uint32_t n) { return below(n) == 0; }

static void *exact(size_t bytes) {
    void *memory = malloc(bytes > 0 ? bytes : 1);
    assert(memory != NULL);
    memset(memory, 0xA5, bytes);
    return memory;
}

/* Pieces that mean something to a tokenizer, and bytes that mean nothing. */
static size_t put_random(uint8_t *out, size_t room) {
    static const char *const pieces[] = {
        "a", "b", "ab", "#", "##a", " ", "  ", "\t", "\n", "'s", "'ll", "[SEP]", "<m>", "A", "1", ".",
        "\xC3\xA9", "\xCC\x81", "\xC3\x85", "\xE4\xB8\x80", "\xEA\xB0\x81", "\xE3\x80\xAE", "\xF0\x9D\x85\xA0",
        "\xF0\x9D\x85\xA5", "\xC4\xB0", "\xC2\xA0", "\xE2\x80\xA8", "\xF0\x9F\x98\x80", "\xEF\xBF\xBD"};
    const char *piece = pieces[below(sizeof pieces / sizeof *pieces)];
    size_t bytes = strlen(piece);
    uint8_t byte = (uint8_t)below(256);
    if (one_in(4)) {
        piece = (const char *)&byte;
        bytes = 1;
    }
    if (bytes > room) {
        return 0;
    }
    memcpy(out, piece, bytes);
    return bytes;
}

static size_t random_text(uint8_t *out, size_t room) {
    size_t bytes = 0;
    for (size_t put = 1; put > 0 && !one_in(40);) {
        put = put_random(out + bytes, room - bytes);
        bytes += put;
    }
    return bytes;
}

static size_t put_utf8(uint8_t *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    out[0] = (uint8_t)(0xC0 | code >> 6);
    out[1] = (uint8_t)(0x80 | (code & 0x3F));
    return 2;
}

typedef struct made {
    lil_text_settings settings;
    uint32_t around[2][3];
    lil_text_added added[2][MAX_ADDED];
    uint8_t texts[2][MAX_ADDED][MAX_LENGTH];
} made;

static void add_token(uint8_t *text, uint32_t *ends, uint32_t *count, const uint8_t *token, size_t bytes) {
    const uint32_t start = *count == 0 ? 0 : ends[*count - 1];
    memcpy(text + start, token, bytes);
    ends[(*count)++] = start + (uint32_t)bytes;
}

/* One or two characters of the alphabet, mostly no duplicates. */
static void make_vocabulary(lil_text_settings *settings) {
    const uint32_t random_tokens = below(60);
    uint8_t *text = exact((256 * 2 + 60 * 4) + (size_t)random_tokens * MAX_LENGTH);
    uint32_t *ends = exact(sizeof(uint32_t) * (256 + 60 + random_tokens)), count = 0, others = 0;
    for (uint32_t byte = 0; byte < 256 && (settings->kind == LIL_TEXT_BYTE_LEVEL_BPE || byte < 128); byte++) {
        const bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
        uint8_t token[2];
        add_token(text, ends, &count, token, put_utf8(token, prints ? byte : 0x100 + others++));
    }
    for (uint32_t i = 0; i < 60; i++) { /* ab, ac ... then abc or ##a ... */
        const uint8_t pair[4] = {(uint8_t)('a' + i % 4), (uint8_t)('a' + i / 4), (uint8_t)('a' + i % 3), 0};
        const uint8_t piece[4] = {'#', '#', (uint8_t)('a' + i % 15), (uint8_t)('a' + i / 15)};
        const bool wordpiece = settings->kind == LIL_TEXT_WORDPIECE;
        add_token(text, ends, &count, wordpiece && i >= 30 ? piece : pair, wordpiece && i >= 30 ? 4 : 2);
    }
    for (uint32_t i = 0; i < random_tokens && one_in(3); i++) {
        uint8_t token[MAX_LENGTH];
        add_token(text, ends, &count, token, random_text(token, MAX_LENGTH));
    }
    settings->text_bytes = ends[count - 1];
    if (one_in(8)) {
        ends[below(count)] = one_in(2) ? below(1000) : below(UINT32_MAX);
    }
    settings->text = text;
    settings->ends = ends;
    settings->num_tokens = count;
    settings->model_tokens = count - (one_in(2) ? below(3) : 0);
    if (one_in(50)) {
        settings->model_tokens = below(2 * count);
    }
}

static void make_merges(lil_text_settings *settings) {
    uint32_t *merges = exact(sizeof(uint32_t) * 2 * 40);
    uint32_t count = 0;
    for (uint32_t i = 0; i < 40 && settings->kind == LIL_TEXT_BYTE_LEVEL_BPE; i++) {
        merges[2 * count] = 'a' + i % 4; /* a byte that prints has its own number as an id, but for the 33 before '!' */
        merges[2 * count + 1] = 'a' + i / 4;
        count++;
    }
    if (count > 0 && one_in(8)) {
        merges[below(2 * count)] = below(one_in(2) ? UINT32_MAX : 300);
    }
    settings->merges = merges;
    settings->num_merges = count;
}

static int by_bytes(const void *a, const void *b) {
    const lil_text_added *first = a, *second = b;
    const uint32_t common = first->bytes < second->bytes ? first->bytes : second->bytes;
    const int order = memcmp(first->text, second->text, common);
    return order != 0 ? order : first->bytes < second->bytes ? -1 : first->bytes > second->bytes;
}

static void make(made *all) {
    lil_text_settings *settings = &all->settings;
    memset(all, 0, sizeof *all);
    settings->kind = (lil_text_kind)below(one_in(100) ? 3 : 2);
    make_vocabulary(settings);
    make_merges(settings);
    for (int side = 0; side < 2; side++) {
        lil_text_added *list = all->added[side];
        const uint32_t count = below(MAX_ADDED + 1);
        for (uint32_t i = 0; i < count; i++) {
            const size_t bytes = random_text(all->texts[side][i], MAX_LENGTH);
            list[i] = (lil_text_added){all->texts[side][i], (uint32_t)bytes, below(settings->num_tokens),
                                       one_in(3), one_in(3), one_in(3)};
        }
        qsort(list, count, sizeof *list, by_bytes);
        *(side == 0 ? &settings->raw : &settings->normalized) = (lil_text_added_list){list, count};
        for (int i = 0; i < 3; i++) {
            all->around[side][i] = below(settings->num_tokens + one_in(50));
        }
    }
    settings->prefix = all->around[0];
    settings->num_prefix = below(4);
    settings->suffix = all->around[1];
    settings->num_suffix = below(4);
    settings->normalizer = (lil_text_normalizer){one_in(2), one_in(2), one_in(2), one_in(2)};
    settings->unk = below(settings->num_tokens + one_in(50));
    settings->max_input_chars_per_word = below(30);
    settings->add_prefix_space = one_in(2);
    settings->use_regex = !one_in(3);
}

static void encode(const lil_text *tokenizer, unsigned counts[LIL_TEXT_STATUS_COUNT]) {
    uint8_t large[MAX_TEXT];
    const size_t bytes = random_text(large, one_in(10) ? MAX_TEXT : 60);
    uint8_t *text = exact(bytes);
    memcpy(text, large, bytes);
    const uint32_t max_tokens = one_in(2) ? UINT32_MAX : below(20);
    const size_t needed = lil_text_capacity(tokenizer, bytes, max_tokens);
    const size_t capacity = needed - (needed > 0 && one_in(50));
    const size_t work_bytes = lil_text_work_bytes(tokenizer, bytes) - one_in(50);
    uint32_t *ids = exact(sizeof(uint32_t) * capacity);
    void *work = exact(work_bytes);
    size_t count = SIZE_MAX;
    const lil_text_status status =
        lil_text_encode(tokenizer, text, bytes, max_tokens, ids, capacity, &count, work, work_bytes);
    counts[status]++;
    if (status == LIL_TEXT_OK) {
        assert(count <= max_tokens && count <= capacity);
        for (size_t i = 0; i < count; i++) {
            assert(ids[i] < tokenizer->settings.num_tokens);
        }
    }
    free(text);
    free(ids);
    free(work);
}

static void print_counts(const unsigned counts[LIL_TEXT_STATUS_COUNT]) {
    for (int i = 0; i < LIL_TEXT_STATUS_COUNT; i++) {
        printf("%u%c", counts[i], i + 1 < LIL_TEXT_STATUS_COUNT ? ' ' : '\n');
    }
}

static void check_misuse(void) {
    lil_text tokenizer;
    size_t count;
    uint32_t id;
    uint64_t memory[4];
    const lil_text_settings nothing = {0};
    assert(lil_text_table_bytes(NULL) == 0 && lil_text_table_bytes(&nothing) == 0);
    assert(lil_text_open(NULL, &nothing, memory, sizeof memory) == LIL_TEXT_NULL_ARGUMENT);
    assert(lil_text_open(&tokenizer, &nothing, memory, sizeof memory) == LIL_TEXT_NULL_ARGUMENT);
    assert(lil_text_encode(NULL, (uint8_t *)"", 0, 9, &id, 1, &count, memory, 32) == LIL_TEXT_NULL_ARGUMENT);
    assert(lil_text_normalize(NULL, (uint8_t *)"", 0, (uint8_t *)memory, 32) == SIZE_MAX);
    for (int i = -1; i <= LIL_TEXT_STATUS_COUNT; i++) {
        assert(strlen(lil_text_status_message((lil_text_status)i)) > 0);
    }
    assert(lil_text_status_record(LIL_TEXT_OK) == NULL && lil_text_status_record(LIL_TEXT_BAD_END) != NULL);
}

int main(int argc, char **argv) {
    unsigned opened[LIL_TEXT_STATUS_COUNT] = {0}, encoded[LIL_TEXT_STATUS_COUNT] = {0};
    state = 88172645463325252u;
    check_misuse();
    for (long i = argc > 1 ? atol(argv[1]) : 1000; i > 0; i--) {
        made all;
        make(&all);
        lil_text tokenizer;
        const size_t needed = lil_text_table_bytes(&all.settings), bytes = needed - (needed > 0 && one_in(50));
        const uint32_t shift = one_in(100);
        void *table = exact(bytes + shift);
        const lil_text_status status = lil_text_open(&tokenizer, &all.settings, (uint8_t *)table + shift, bytes);
        opened[status]++;
        for (int j = 0; status == LIL_TEXT_OK && j < 20; j++) {
            encode(&tokenizer, encoded);
        }
        free(table);
        free((void *)(uintptr_t)all.settings.text);
        free((void *)(uintptr_t)all.settings.ends);
        free((void *)(uintptr_t)all.settings.merges);
    }
    print_counts(opened);
    print_counts(encoded);
    return 0;
}
