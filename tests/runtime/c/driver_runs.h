/* Runs of either kind of program on examples, alone or with a team, for driver.c. */
#ifndef DRIVER_RUNS_H
#define DRIVER_RUNS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lil.h"
#include "lil_format.h"

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                                   \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)

enum { TEAM = 3 };

/* A team whose threads run one after another. */
static void take_turns(void *threads, void (*task)(void *argument, size_t thread), void *argument) {
    const size_t *count = threads;
    for (size_t i = 0; i < *count; i++) {
        task(argument, i);
    }
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes > 0 ? bytes : 1);
    CHECK(memory != NULL);
    return memory;
}

static void *allocate_arena(size_t bytes) {
    void *memory = aligned_alloc(LIL_ALIGNMENT, (bytes + LIL_ALIGNMENT) / LIL_ALIGNMENT * LIL_ALIGNMENT);
    CHECK(memory != NULL);
    return memory;
}

/* What one call runs: an image, or sequences. */
typedef struct batch {
    void *input; /* pixels, or the token ids of all sequences */
    size_t input_bytes;
    uint32_t *lengths; /* of the sequences; NULL for an image */
    size_t count;      /* of outputs */
    size_t num_tokens; /* of all sequences */
} batch;

static batch image_of(const lil_model *model) {
    return (batch){allocate(lil_input_bytes(model)), lil_input_bytes(model), NULL, 1, 0};
}

/* Sequences of these lengths, whose ids are to be filled. */
static batch sequences_of(const uint32_t *lengths, size_t count) {
    batch b = {.lengths = allocate(count * sizeof *lengths), .count = count};
    for (size_t i = 0; i < count; i++) {
        b.lengths[i] = lengths[i];
        b.num_tokens += lengths[i];
    }
    b.input_bytes = b.num_tokens * sizeof(uint32_t);
    b.input = allocate(b.input_bytes);
    return b;
}

/* Golden example `first`, or of a sequence program `count` of them from there on. */
static batch golden_batch(const lil_model *model, uint32_t first, uint32_t count) {
    if (model->max_tokens == 0) {
        const batch b = image_of(model);
        memcpy(b.input, model->golden_inputs + first * b.input_bytes, b.input_bytes);
        return b;
    }
    uint32_t *lengths = allocate(model->num_golden * sizeof *lengths);
    memcpy(lengths, model->golden_inputs, model->num_golden * sizeof *lengths);
    size_t start = model->num_golden;
    for (uint32_t i = 0; i < first; i++) {
        start += lengths[i];
    }
    const batch b = sequences_of(lengths + first, count);
    memcpy(b.input, model->golden_inputs + 4 * start, b.input_bytes);
    free(lengths);
    return b;
}

static void free_batch(batch *b) {
    free(b->input);
    free(b->lengths);
}

static size_t arena_bytes_of(const lil_model *model, size_t num_threads, const batch *b) {
    return model->max_tokens == 0 ? lil_arena_bytes(model, num_threads)
                                  : lil_sequence_arena_bytes(model, num_threads, b->num_tokens);
}

static size_t output_bytes_of(const lil_model *model, const batch *b) {
    return b->count * lil_output_bytes(model);
}

static lil_status run_batch(const lil_model *model, const lil_context *context, const batch *b, float *output,
                            size_t output_bytes) {
    return model->max_tokens == 0
               ? lil_run(model, context, b->input, b->input_bytes, output, output_bytes)
               : lil_run_sequences(model, context, b->input, b->lengths, b->count, output, output_bytes);
}

/* Run it alone in an arena of which every byte was `fill`; the outputs are to be freed. */
static float *outputs_of(const lil_model *model, const batch *b, int fill) {
    const size_t bytes = arena_bytes_of(model, 1, b), output_bytes = output_bytes_of(model, b);
    const lil_context context = {.arena = allocate_arena(bytes), .arena_bytes = bytes};
    float *output = allocate(output_bytes);
    memset(context.arena, fill, bytes);
    CHECK(run_batch(model, &context, b, output, output_bytes) == LIL_OK);
    free(context.arena);
    return output;
}

/* How many golden outputs from number `first` on differ. */
static int compare_golden(const lil_model *model, uint32_t first, uint32_t count) {
    batch b = golden_batch(model, first, count);
    float *output = outputs_of(model, &b, 0xA5);
    const size_t bytes = lil_output_bytes(model);
    int wrong = 0;
    for (uint32_t i = 0; i < count; i++) {
        wrong += memcmp((uint8_t *)output + i * bytes, model->golden_outputs + (first + i) * bytes, bytes) != 0;
    }
    free(output);
    free_batch(&b);
    return wrong;
}

/* How many golden outputs differ: of examples run one by one, and of sequences run together. */
static int run_golden(const lil_model *model) {
    int wrong = 0;
    for (uint32_t i = 0; i < model->num_golden; i++) {
        wrong += compare_golden(model, i, 1);
    }
    if (model->max_tokens > 0 && model->num_golden > 0) {
        wrong += compare_golden(model, 0, model->num_golden);
    }
    return wrong;
}

#endif
