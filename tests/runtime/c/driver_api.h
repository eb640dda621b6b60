/* The refusals of lil_run and lil_run_sequences, for driver.c. */
#ifndef DRIVER_API_H
#define DRIVER_API_H

#include "driver_runs.h"

static void check_messages(void) {
    for (int status = -1; status <= LIL_STATUS_COUNT; status++) {
        const char *message = lil_status_message((lil_status)status);
        CHECK(message != NULL && strlen(message) > 5);
        CHECK((strcmp(message, "no such status") == 0) == (status < 0 || status == LIL_STATUS_COUNT));
        (void)lil_status_record((lil_status)status);
    }
}

static bool untouched(const float *output, size_t bytes) {
    for (size_t i = 0; i < bytes / sizeof *output; i++) {
        if (output[i] != 0.0f) {
            return false;
        }
    }
    return true;
}

static void check_image_api(const lil_model *model) {
    batch b = image_of(model);
    const size_t a = lil_arena_bytes(model, 1), i = lil_input_bytes(model), o = lil_output_bytes(model);
    uint8_t *arena = allocate_arena(a), *input = b.input;
    float *output = allocate(o);
    memset(input, 7, i);
    memset(output, 0, o);
    const lil_context context = {.arena = arena, .arena_bytes = a};
    const lil_team none = {.num_threads = 0, .run = NULL}, idle = {.num_threads = 1, .run = NULL};
    const uint32_t token = 0, one = 1;
    float *file = (float *)(void *)(uintptr_t)model->constants;
    CHECK(lil_run(NULL, &context, input, i, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, NULL, input, i, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, &(lil_context){.arena_bytes = a}, input, i, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, &context, NULL, i, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, &context, input, i, NULL, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run_sequences(model, &context, &token, &one, 1, output, o) == LIL_WRONG_PROGRAM);
    CHECK(lil_run(model, &(lil_context){.arena = arena, .arena_bytes = a - 1}, input, i, output, o) == LIL_ARENA_SMALL);
    CHECK(lil_run(model, &(lil_context){.arena = arena + 32, .arena_bytes = a}, input, i, output, o) ==
          LIL_ARENA_MISALIGNED);
    CHECK(lil_run(model, &context, input, i - 1, output, o) == LIL_INPUT_SIZE);
    CHECK(lil_run(model, &context, input, i + 1, output, o) == LIL_INPUT_SIZE);
    CHECK(lil_run(model, &context, input, i, output, o - 4) == LIL_OUTPUT_SIZE);
    CHECK(lil_run(model, &context, input, i, (float *)(void *)((uint8_t *)output + 1), o) == LIL_OUTPUT_MISALIGNED);
    CHECK(lil_run(model, &context, arena + a - 1, i, output, o) == LIL_MEMORY_OVERLAP);
    CHECK(lil_run(model, &context, input, i, (float *)(void *)arena, o) == LIL_MEMORY_OVERLAP);
    CHECK(lil_run(model, &context, output, i, output, o) == LIL_MEMORY_OVERLAP);
    if ((uintptr_t)file % sizeof(float) == 0) {
        CHECK(lil_run(model, &context, input, i, file, o) == LIL_MEMORY_OVERLAP);
    }
    CHECK(lil_run(model, &(lil_context){.arena = arena, .arena_bytes = a, .team = &none}, input, i, output, o) ==
          LIL_BAD_TEAM);
    CHECK(lil_run(model, &(lil_context){.arena = arena, .arena_bytes = a, .team = &idle}, input, i, output, o) ==
          LIL_BAD_TEAM);
    CHECK(lil_arena_bytes(model, SIZE_MAX) == SIZE_MAX);
    CHECK(lil_arena_bytes(model, 0) == a && lil_arena_bytes(model, 3) == a + 2 * model->scratch_bytes);
    CHECK(untouched(output, o));
    CHECK(lil_run(model, &context, input, i, output, o) == LIL_OK);
    CHECK(lil_run(model, &context, model->golden_inputs, i, output, o) == LIL_OK); /* reading from the file is fine */
    free(arena);
    free(output);
    free_batch(&b);
}

/* Bytes of arenas: they grow in steps of 16 tokens, and with the threads. */
static void check_sequence_arena(const lil_model *model) {
    const size_t each = lil_sequence_arena_bytes(model, 1, 1), most = (size_t)1 << 24;
    CHECK(each == 16 * model->arena_bytes && each % LIL_ALIGNMENT == 0);
    CHECK(lil_sequence_arena_bytes(model, 1, 0) == 0);
    CHECK(lil_sequence_arena_bytes(model, 1, 16) == each && lil_sequence_arena_bytes(model, 0, 16) == each);
    CHECK(lil_sequence_arena_bytes(model, 1, 17) == 2 * each && lil_sequence_arena_bytes(model, 1, 32) == 2 * each);
    CHECK(lil_sequence_arena_bytes(model, 3, 17) == 2 * (each + 2 * 16 * model->scratch_bytes));
    CHECK(lil_sequence_arena_bytes(model, 1, most) == most / 16 * each);
    CHECK(lil_sequence_arena_bytes(model, 1, most + 1) == SIZE_MAX);
    CHECK(lil_sequence_arena_bytes(model, 1, SIZE_MAX) == SIZE_MAX);
    CHECK(lil_sequence_arena_bytes(model, SIZE_MAX, 1) == SIZE_MAX);
    CHECK(lil_sequence_arena_bytes(model, SIZE_MAX / model->scratch_bytes, most) == SIZE_MAX);
    CHECK(lil_arena_bytes(model, 2) == lil_sequence_arena_bytes(model, 2, model->max_tokens));
}

/* Lengths that are refused before anything else is looked at, and the most that are not. */
static void check_lengths(const lil_model *model, const lil_context *context, const uint32_t *tokens, float *output) {
    const uint32_t longest = model->max_tokens, bad[] = {0, longest + 1, UINT32_MAX};
    const size_t o = lil_output_bytes(model), most = (size_t)1 << 24, count = most / longest;
    uint32_t *lengths = allocate((count + 1) * sizeof *lengths);
    lengths[0] = 1;
    CHECK(lil_run_sequences(model, context, tokens, lengths, 0, output, 0) == LIL_SEQUENCE_LENGTH);
    for (int k = 0; k < 3; k++) {
        lengths[1] = bad[k];
        CHECK(lil_run_sequences(model, context, tokens, lengths, 2, output, 2 * o) == LIL_SEQUENCE_LENGTH);
    }
    for (size_t k = 0; k < count; k++) {
        lengths[k] = longest;
    }
    lengths[count] = (uint32_t)(most % longest);
    const bool has_rest = lengths[count] > 0;
    const size_t all = count + has_rest;
    CHECK(lil_run_sequences(model, context, tokens, lengths, all, output, all * o) == LIL_ARENA_SMALL);
    lengths[has_rest ? count : 0] += has_rest ? 1 : 0;
    lengths[count] = has_rest ? lengths[count] : 1;
    CHECK(lil_run_sequences(model, context, tokens, lengths, count + 1, output, all * o) == LIL_SEQUENCE_LENGTH);
    CHECK(lil_run_sequences(model, context, tokens, lengths, most + 1, output, o) == LIL_SEQUENCE_LENGTH);
    CHECK(lil_run_sequences(model, context, tokens, lengths, SIZE_MAX, output, o) == LIL_SEQUENCE_LENGTH);
    free(lengths);
}

/* Memory that overlaps, through one call whose every part is right but for one. */
static void check_overlaps(const lil_model *model, const batch *b, uint8_t *arena, size_t a, float *output, size_t o) {
    const lil_context context = {.arena = arena, .arena_bytes = a};
    const uint32_t *tokens = b->input;
    uint32_t *end = (uint32_t *)(void *)(arena + a) - 1;
    CHECK(lil_run_sequences(model, &context, end, b->lengths, b->count, output, o) == LIL_MEMORY_OVERLAP);
    *end = b->lengths[0]; /* a length in the arena's last word */
    CHECK(lil_run_sequences(model, &context, tokens, end, 1, output, o / b->count) == LIL_MEMORY_OVERLAP);
    CHECK(lil_run_sequences(model, &context, tokens, b->lengths, b->count, (float *)(void *)end, o) ==
          LIL_MEMORY_OVERLAP);
    CHECK(lil_run_sequences(model, &context, tokens, b->lengths, b->count, b->input, o) == LIL_MEMORY_OVERLAP);
    CHECK(lil_run_sequences(model, &context, tokens, b->lengths, b->count, (float *)(void *)b->lengths, o) ==
          LIL_MEMORY_OVERLAP);
    const lil_context in_file = {.arena = (void *)((uintptr_t)model->constants / 64 * 64), .arena_bytes = a};
    CHECK(lil_run_sequences(model, &in_file, tokens, b->lengths, b->count, output, o) == LIL_MEMORY_OVERLAP);
    float *file = (float *)((uintptr_t)model->constants / 4 * 4);
    CHECK(lil_run_sequences(model, &context, tokens, b->lengths, b->count, file, o) == LIL_MEMORY_OVERLAP);
}

static void check_sequence_api(const lil_model *model) {
    CHECK(model->num_golden > 1 && model->max_tokens < 100);
    batch b = golden_batch(model, 0, model->num_golden);
    const size_t a = arena_bytes_of(model, 1, &b), o = output_bytes_of(model, &b), n = b.count;
    uint8_t *arena = allocate_arena(a + LIL_ALIGNMENT);
    uint32_t *ids = b.input, *lengths = b.lengths;
    float *output = allocate(o + 4);
    memset(output, 0, o + 4);
    const lil_context context = {.arena = arena, .arena_bytes = a};
    const lil_team none = {.num_threads = 0, .run = NULL}, idle = {.num_threads = 1, .run = NULL};
    CHECK(lil_run_sequences(NULL, &context, ids, lengths, n, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run_sequences(model, NULL, ids, lengths, n, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run_sequences(model, &context, NULL, lengths, n, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run_sequences(model, &context, ids, NULL, n, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run_sequences(model, &context, ids, lengths, n, NULL, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run_sequences(model, &(lil_context){.arena_bytes = a}, ids, lengths, n, output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, &context, ids, 4, output, o / n) == LIL_WRONG_PROGRAM);
    CHECK(lil_run(model, &context, ids, 0, output, o / n) == LIL_WRONG_PROGRAM);
    check_lengths(model, &context, ids, output);
    CHECK(lil_run_sequences(model, &(lil_context){.arena = arena, .arena_bytes = a - 1}, ids, lengths, n, output, o) ==
          LIL_ARENA_SMALL);
    CHECK(lil_run_sequences(model, &(lil_context){.arena = arena + 32, .arena_bytes = a}, ids, lengths, n, output, o) ==
          LIL_ARENA_MISALIGNED);
    CHECK(lil_run_sequences(model, &context, ids, lengths, n, output, o - 4) == LIL_OUTPUT_SIZE);
    CHECK(lil_run_sequences(model, &context, ids, lengths, n, output, o + 4) == LIL_OUTPUT_SIZE);
    CHECK(lil_run_sequences(model, &context, ids, lengths, n, output, o / n) == LIL_OUTPUT_SIZE);
    float *odd = (float *)(void *)((uint8_t *)output + 2);
    CHECK(lil_run_sequences(model, &context, ids, lengths, n, odd, o) == LIL_OUTPUT_MISALIGNED);
    check_overlaps(model, &b, arena, a, output, o);
    const lil_team *const teams[] = {&none, &idle};
    for (int k = 0; k < 2; k++) {
        const lil_context with = {.arena = arena, .arena_bytes = a, .team = teams[k]};
        CHECK(lil_run_sequences(model, &with, ids, lengths, n, output, o) == LIL_BAD_TEAM);
    }
    const uint32_t unknown[] = {model->num_token_ids, UINT32_MAX, 0x80000000u};
    for (int k = 0; k < 3; k++) {
        uint32_t *at = k == 0 ? &ids[b.num_tokens - 1] : &ids[0];
        const uint32_t before = *at;
        *at = unknown[k];
        CHECK(lil_run_sequences(model, &context, ids, lengths, n, output, o) == LIL_UNKNOWN_TOKEN);
        *at = before;
    }
    CHECK(untouched(output, o));
    CHECK(lil_run_sequences(model, &context, ids, lengths, n, output, o) == LIL_OK);
    CHECK(memcmp(output, model->golden_outputs, o) == 0 && output[o / 4] == 0.0f);
    const uint32_t *words = (const uint32_t *)(const void *)model->golden_inputs; /* reading from the file is fine */
    if ((uintptr_t)words % sizeof *words == 0) {
        memset(output, 0, o);
        CHECK(lil_run_sequences(model, &context, words + n, words, n, output, o) == LIL_OK);
        CHECK(memcmp(output, model->golden_outputs, o) == 0);
    }
    check_sequence_arena(model);
    free(arena);
    free(output);
    free_batch(&b);
}

static void check_api(const lil_model *model) {
    lil_model other;
    CHECK(lil_open(NULL, model->file, model->file_bytes) == LIL_NULL_ARGUMENT);
    CHECK(lil_open(&other, NULL, model->file_bytes) == LIL_NULL_ARGUMENT);
    model->max_tokens > 0 ? check_sequence_api(model) : check_image_api(model);
    check_messages();
}

#endif
