/* Opens and runs a model where every allocation is an error, for test_allocation.py.
 *
 *     allocation FILE    malloc and its kin end the process, and so does any system call (seccomp's strict mode lets read,
 *                        write and exit through): mmap, brk, futex. Prints "open", then the name of each instruction set
 *                        whose run has ended, then "done". Exits with 3, before any of it, where there is no seccomp. */
#define _DEFAULT_SOURCE
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lil.h"

enum { MAX_FILE = 1 << 22, MAX_ARENA = 1 << 24, MAX_OUTPUTS = 4096, MAX_TOKENS = 25, TEAM = 3 };

static uint8_t file[MAX_FILE];
static _Alignas(LIL_ALIGNMENT) uint8_t arena[MAX_ARENA];
static uint8_t input[MAX_FILE];
static uint32_t tokens[MAX_TOKENS];
static const uint32_t lengths[] = {1, 7, MAX_TOKENS - 8}; /* of the sequences of a sequence program */
static float outputs[LIL_ISA_COUNT][MAX_OUTPUTS];
static volatile int forbidden; /* from now on nothing may be allocated */

/* As write() and _exit(), which are all that still works. */
static void say(const char *text) {
    if (write(STDOUT_FILENO, text, strlen(text)) < 0 || write(STDOUT_FILENO, "\n", 1) < 0) {
        syscall(SYS_exit, 1);
    }
}

static void leave(const char *text, int status) {
    say(text);
    syscall(SYS_exit, status); /* exit_group, which exit() calls, is refused */
}

/* These take the place of libc's. Before `forbidden` they hand out a little static memory, never freed. */
static void *allocate(size_t alignment, size_t bytes) {
    static _Alignas(64) uint8_t memory[1 << 20];
    static size_t used;
    if (forbidden) {
        leave("something was allocated", 1);
    }
    used = (used + alignment - 1) / alignment * alignment;
    if (bytes > sizeof memory - used) {
        return NULL;
    }
    used += bytes;
    return memory + used - bytes;
}

void *malloc(size_t bytes) {
    return allocate(16, bytes);
}

void *calloc(size_t count, size_t bytes) {
    return allocate(16, count * bytes); /* static memory is zero */
}

void *realloc(void *old, size_t bytes) {
    return old == NULL ? allocate(16, bytes) : (leave("something was reallocated", 1), NULL);
}

void *aligned_alloc(size_t alignment, size_t bytes) {
    return allocate(alignment, bytes);
}

void *memalign(size_t alignment, size_t bytes);
void *memalign(size_t alignment, size_t bytes) {
    return allocate(alignment, bytes);
}

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    *memory = allocate(alignment, bytes);
    return *memory == NULL;
}

void free(void *memory) {
    (void)memory;
}

static void take_turns(void *threads, void (*task)(void *argument, size_t thread), void *argument) {
    (void)threads;
    for (size_t i = 0; i < TEAM; i++) {
        task(argument, i);
    }
}

enum { NUM_SEQUENCES = sizeof lengths / sizeof *lengths };

static size_t output_bytes_of(const lil_model *model) {
    return (model->max_tokens > 0 ? NUM_SEQUENCES : 1) * lil_output_bytes(model);
}

static void run(const lil_model *model, const lil_team *team) {
    const lil_context context = {.arena = arena, .arena_bytes = sizeof arena, .team = team};
    const size_t output_bytes = output_bytes_of(model);
    float *output = outputs[model->isa];
    const lil_status status =
        model->max_tokens > 0 ? lil_run_sequences(model, &context, tokens, lengths, NUM_SEQUENCES, output, output_bytes)
                              : lil_run(model, &context, input, lil_input_bytes(model), output, output_bytes);
    if (status != LIL_OK || memcmp(output, outputs[LIL_SCALAR], output_bytes) != 0) {
        leave("wrong", 1);
    }
}

/* Whether the memory above is enough. */
static bool fits(const lil_model *model) {
    const bool is_image = model->max_tokens == 0;
    const size_t arena_bytes =
        is_image ? lil_arena_bytes(model, TEAM) : lil_sequence_arena_bytes(model, TEAM, MAX_TOKENS);
    return arena_bytes <= sizeof arena && output_bytes_of(model) <= sizeof outputs[0] &&
           (is_image ? lil_input_bytes(model) <= sizeof input : model->max_tokens >= lengths[NUM_SEQUENCES - 1]);
}

int main(int argc, char **argv) {
    FILE *source = argc == 2 ? fopen(argv[1], "rb") : NULL;
    const size_t size = source == NULL ? 0 : fread(file, 1, sizeof file, source);
    bool available[LIL_ISA_COUNT];
    for (int isa = 0; isa < LIL_ISA_COUNT; isa++) {
        available[isa] = lil_isa_available((lil_isa)isa); /* asks the system for the registers of AMX */
    }
    lil_model model;
    const lil_status status = lil_open(&model, file, size); /* once outside, to know that the memory is enough */
    if (status != LIL_OK || !fits(&model)) {
        leave("not such a file, or too large", 2);
    }
    for (size_t i = 0; i < MAX_TOKENS && model.max_tokens > 0; i++) {
        tokens[i] = (uint32_t)(7 * i % model.num_token_ids);
    }
    forbidden = 1;
    if (lil_open(&model, file, size) != LIL_OK) { /* and again: opening does not allocate either */
        leave("not opened", 1);
    }
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
        leave("no seccomp", 3);
    }
    say("open");
    const lil_team team = {.num_threads = TEAM, .run = take_turns, .threads = NULL};
    for (int isa = 0; isa < LIL_ISA_COUNT; isa++) {
        if (available[isa]) {
            model.isa = (lil_isa)isa; /* lil_use_isa would ask the system again */
            for (int round = 0; round < 3; round++) {
                run(&model, round == 2 ? &team : NULL);
            }
            say(lil_isa_name((lil_isa)isa));
        }
    }
    leave("done", 0);
}
