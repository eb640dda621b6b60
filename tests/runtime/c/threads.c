/* Many threads on one model, for test_threads.py, which compiles it with ThreadSanitizer.
 *
 *     threads FILE    several threads at once, each with a context of its own: some run alone, some with a team of threads,
 *                     some open the same bytes again. All outputs are those of one thread. Prints how many runs. */
#include <fenv.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lil.h"

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                                   \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)

enum { NUM_INPUTS = 12, NUM_WORKERS = 6, ROUNDS = 3, MAX_TEAM = 3 };

static lil_model model; /* opened once, by main; after that it is only read */
static uint8_t *inputs;
static float *wanted;
static uint32_t lengths[NUM_INPUTS]; /* of the sequences of a sequence program */
static size_t num_tokens;            /* of all of them */

static void *allocate(size_t bytes) {
    void *memory = aligned_alloc(LIL_ALIGNMENT, (bytes + LIL_ALIGNMENT) / LIL_ALIGNMENT * LIL_ALIGNMENT);
    CHECK(memory != NULL);
    return memory;
}

/* One member of a team: its task, which it does with another rounding, as a thread of some other library might. */
typedef struct member {
    void (*task)(void *argument, size_t thread);
    void *argument;
    size_t thread;
} member;

static void *do_task(void *argument) {
    const member *m = argument;
    CHECK(fesetround(FE_UPWARD) == 0);
    m->task(m->argument, m->thread);
    CHECK(fegetround() == FE_UPWARD); /* as it was */
    return NULL;
}

/* A lil_team.run of threads that live for one op. `threads` points to how many. */
static void run_team(void *threads, void (*task)(void *argument, size_t thread), void *argument) {
    const size_t count = *(const size_t *)threads;
    pthread_t ids[MAX_TEAM];
    member members[MAX_TEAM];
    for (size_t i = 1; i < count; i++) {
        members[i] = (member){task, argument, i};
        CHECK(pthread_create(&ids[i], NULL, do_task, &members[i]) == 0);
    }
    task(argument, 0);
    for (size_t i = 1; i < count; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
    }
}

/* All sequences at once, with the team of `context`. */
static void run_pack(const lil_model *opened, size_t num_threads, const lil_team *team) {
    const size_t output_bytes = NUM_INPUTS * lil_output_bytes(opened);
    const size_t bytes = lil_sequence_arena_bytes(opened, num_threads, num_tokens);
    const lil_context context = {.arena = allocate(bytes), .arena_bytes = bytes, .team = team};
    float *output = allocate(output_bytes);
    const uint32_t *tokens = (const uint32_t *)(const void *)inputs;
    CHECK(lil_run_sequences(opened, &context, tokens, lengths, NUM_INPUTS, output, output_bytes) == LIL_OK);
    CHECK(memcmp(output, wanted, output_bytes) == 0);
    free(context.arena);
    free(output);
}

/* Run every input with a team of `num_threads` (1: alone) and compare. */
static void run_inputs(const lil_model *opened, size_t num_threads) {
    const size_t input_bytes = lil_input_bytes(opened), output_bytes = lil_output_bytes(opened);
    const lil_team team = {.num_threads = num_threads, .run = run_team, .threads = &num_threads};
    if (opened->max_tokens > 0) {
        run_pack(opened, num_threads, num_threads > 1 ? &team : NULL);
        return;
    }
    const lil_context context = {.arena = allocate(lil_arena_bytes(opened, num_threads)),
                                 .arena_bytes = lil_arena_bytes(opened, num_threads),
                                 .team = num_threads > 1 ? &team : NULL};
    float *output = allocate(output_bytes);
    for (size_t i = 0; i < NUM_INPUTS; i++) {
        CHECK(lil_run(opened, &context, inputs + i * input_bytes, input_bytes, output, output_bytes) == LIL_OK);
        CHECK(memcmp(output, wanted + i * opened->output_cols, output_bytes) == 0);
    }
    free(context.arena);
    free(output);
}

/* A worker by its number: 0 and 1 share runs among threads, 2 opens the file again, the others run alone. */
static void *work(void *argument) {
    const size_t number = (size_t)(uintptr_t)argument;
    for (int round = 0; round < ROUNDS; round++) {
        if (number < 2) {
            run_inputs(&model, MAX_TEAM - number);
        } else if (number == 2) {
            lil_model other;
            CHECK(lil_open(&other, model.file, model.file_bytes) == LIL_OK);
            for (int isa = 0; isa < LIL_ISA_COUNT; isa++) {
                if (lil_use_isa(&other, (lil_isa)isa) == LIL_OK) {
                    run_inputs(&other, 1);
                }
            }
        } else {
            run_inputs(&model, 1);
        }
    }
    return NULL;
}

static void read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    const long size = ftell(file);
    CHECK(size > 0 && fseek(file, 0, SEEK_SET) == 0);
    uint8_t *bytes = allocate((size_t)size);
    CHECK(fread(bytes, 1, (size_t)size, file) == (size_t)size);
    fclose(file);
    CHECK(lil_open(&model, bytes, (size_t)size) == LIL_OK);
}

/* Images, and what each gives alone. */
static void make_images(void) {
    const size_t input_bytes = lil_input_bytes(&model), output_bytes = lil_output_bytes(&model);
    inputs = allocate(NUM_INPUTS * input_bytes);
    wanted = allocate(NUM_INPUTS * output_bytes);
    const lil_context context = {.arena = allocate(lil_arena_bytes(&model, 1)),
                                 .arena_bytes = lil_arena_bytes(&model, 1)};
    for (size_t i = 0; i < NUM_INPUTS * input_bytes; i++) {
        inputs[i] = (uint8_t)(i * i * 31 >> 3);
    }
    for (size_t i = 0; i < NUM_INPUTS; i++) {
        CHECK(lil_run(&model, &context, inputs + i * input_bytes, input_bytes, wanted + i * model.output_cols,
                      output_bytes) == LIL_OK);
    }
    free(context.arena);
}

/* The same of sequences. */
static void make_sequences(void) {
    const size_t output_bytes = lil_output_bytes(&model);
    inputs = allocate(NUM_INPUTS * model.max_tokens * sizeof(uint32_t));
    wanted = allocate(NUM_INPUTS * output_bytes);
    uint32_t *tokens = (uint32_t *)(void *)inputs;
    const lil_context context = {.arena = allocate(lil_arena_bytes(&model, 1)),
                                 .arena_bytes = lil_arena_bytes(&model, 1)};
    for (size_t i = 0; i < NUM_INPUTS; i++) {
        lengths[i] = (uint32_t)(1 + i * i * 5 % model.max_tokens);
        for (size_t k = num_tokens; k < num_tokens + lengths[i]; k++) {
            tokens[k] = (uint32_t)(k * k * 31 >> 3) % model.num_token_ids;
        }
        CHECK(lil_run_sequences(&model, &context, tokens + num_tokens, &lengths[i], 1, wanted + i * model.output_cols,
                                output_bytes) == LIL_OK);
        num_tokens += lengths[i];
    }
    free(context.arena);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    read_file(argv[1]);
    model.max_tokens > 0 ? make_sequences() : make_images();
    pthread_t ids[NUM_WORKERS];
    for (size_t i = 0; i < NUM_WORKERS; i++) {
        CHECK(pthread_create(&ids[i], NULL, work, (void *)(uintptr_t)i) == 0);
    }
    for (size_t i = 0; i < NUM_WORKERS; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
    }
    printf("%d\n", NUM_INPUTS * ROUNDS * (NUM_WORKERS - 1));
    return 0;
}
