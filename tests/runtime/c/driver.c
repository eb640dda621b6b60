/* Runs the C core alone, for the tests in ../test_c_core.py, which compile it with the sanitizers.
 *
 *     driver files PACK    PACK: for each file a uint32 of its size, then its bytes. Opens each at a misaligned address
 *                          whose end is the end of its allocation, and runs it if it opens. One line a file:
 *                          status, where, golden examples that differ.
 *     driver api PACK      checks lil_run's refusals on a good file, and that the thread's rounding does not matter.
 *     driver fresh PACK    opens and runs good files on each instruction set, alone and with a team, in memory that
 *                          nobody has written, for a tool that follows undefined bytes (valgrind). Prints nothing. */
#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lil.h"
#include "lil_format.h"

#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#endif
#endif
#ifndef VALGRIND_MAKE_MEM_UNDEFINED
#define VALGRIND_MAKE_MEM_UNDEFINED(start, bytes) ((void)(start), (void)(bytes))
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

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

typedef struct run_memory {
    void *arena;
    uint8_t *input;
    float *output;
} run_memory;

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes > 0 ? bytes : 1);
    CHECK(memory != NULL);
    return memory;
}

/* `fill`: what every byte of the arena holds before. */
static run_memory memory_for(const lil_model *model, int fill) {
    const size_t arena_bytes = lil_arena_bytes(model, 1);
    run_memory m = {aligned_alloc(LIL_ALIGNMENT, arena_bytes > 0 ? arena_bytes : LIL_ALIGNMENT),
                    allocate(lil_input_bytes(model)), allocate(lil_output_bytes(model))};
    CHECK(m.arena != NULL);
    memset(m.arena, fill, arena_bytes);
    return m;
}

static void release(run_memory *m) {
    free(m->arena);
    free(m->input);
    free(m->output);
}

static lil_status run(const lil_model *model, const run_memory *m) {
    const lil_context context = {.arena = m->arena, .arena_bytes = lil_arena_bytes(model, 1)};
    return lil_run(model, &context, m->input, lil_input_bytes(model), m->output,
                   lil_output_bytes(model));
}

/* How many golden examples differ. */
static int run_golden(const lil_model *model) {
    run_memory m = memory_for(model, 0xA5);
    const size_t input_bytes = lil_input_bytes(model), output_bytes = lil_output_bytes(model);
    int wrong = 0;
    for (uint32_t i = 0; i < model->num_golden; i++) {
        memcpy(m.input, model->golden_inputs + i * input_bytes, input_bytes);
        CHECK(run(model, &m) == LIL_OK);
        wrong += memcmp(m.output, model->golden_outputs + i * output_bytes, output_bytes) != 0;
    }
    release(&m);
    return wrong;
}

/* What the arena held before must not show: nothing is read that this run has not written. */
static void check_arena_is_not_read(const lil_model *model) {
    run_memory first = memory_for(model, 0xFF), second = memory_for(model, 0x40);
    for (int value = 0; value < 256; value += 51) {
        memset(first.input, value, lil_input_bytes(model));
        memset(second.input, value, lil_input_bytes(model));
        CHECK(run(model, &first) == LIL_OK);
        memset(second.arena, 0x40, lil_arena_bytes(model, 1));
        CHECK(run(model, &second) == LIL_OK);
        CHECK(memcmp(first.output, second.output, lil_output_bytes(model)) == 0);
    }
    release(&first);
    release(&second);
}

/* A team needs scratch for each thread, and gives the bits of one. */
static void check_team(const lil_model *model) {
    run_memory m = memory_for(model, 0);
    const size_t i = lil_input_bytes(model), o = lil_output_bytes(model), needed = lil_arena_bytes(model, TEAM);
    CHECK(needed > lil_arena_bytes(model, 1) && lil_arena_bytes(model, 2) < needed);
    size_t count = TEAM;
    const lil_team team = {.num_threads = TEAM, .run = take_turns, .threads = &count};
    lil_context context = {.arena = aligned_alloc(LIL_ALIGNMENT, needed), .arena_bytes = needed, .team = &team};
    float *output = allocate(o);
    CHECK(context.arena != NULL);
    memset(m.input, 99, i);
    memset(context.arena, 0xA5, needed);
    CHECK(run(model, &m) == LIL_OK);
    CHECK(lil_run(model, &context, m.input, i, output, o) == LIL_OK && memcmp(output, m.output, o) == 0);
    const size_t too_small[] = {needed - 1, needed - model->scratch_bytes, lil_arena_bytes(model, 1), 0};
    memset(output, 0, o);
    for (size_t k = 0; k < sizeof too_small / sizeof *too_small; k++) {
        context.arena_bytes = too_small[k];
        CHECK(lil_run(model, &context, m.input, i, output, o) == LIL_ARENA_SMALL);
    }
    const lil_team endless = {.num_threads = SIZE_MAX, .run = take_turns, .threads = &count}; /* its scratch cannot be addressed */
    context = (lil_context){.arena = context.arena, .arena_bytes = needed, .team = &endless};
    CHECK(lil_run(model, &context, m.input, i, output, o) == LIL_ARENA_SMALL);
    for (size_t k = 0; k < o / sizeof *output; k++) {
        CHECK(output[k] == 0.0f);
    }
    free(context.arena);
    free(output);
    release(&m);
}

/* What is there can be taken and gives the golden outputs; what is not is refused and changes nothing. */
static void check_isas(const lil_model *model) {
    lil_model copy = *model;
    CHECK(lil_isa_available(LIL_SCALAR) && lil_isa_available(model->isa));
    CHECK(!lil_isa_available(LIL_ISA_COUNT) && !lil_isa_available((lil_isa)-1));
    CHECK(lil_use_isa(NULL, LIL_SCALAR) == LIL_NULL_ARGUMENT);
    CHECK(lil_isa_name(LIL_ISA_COUNT) == NULL && lil_isa_name((lil_isa)-1) == NULL);
    for (int isa = -1; isa <= LIL_ISA_COUNT; isa++) {
        const lil_isa before = copy.isa;
        const lil_status status = lil_use_isa(&copy, (lil_isa)isa);
        CHECK(status == (lil_isa_available((lil_isa)isa) ? LIL_OK : LIL_ISA_MISSING));
        CHECK(copy.isa == (status == LIL_OK ? (lil_isa)isa : before));
        CHECK(run_golden(&copy) == 0);
    }
#if defined(__x86_64__) || defined(__i386__)
    const lil_isa foreign[] = {LIL_NEON, LIL_NEONDOT};
#else
    const lil_isa foreign[] = {LIL_AVX2, LIL_AVX512};
#endif
    copy = *model;
    for (int i = 0; i < 2; i++) {
        CHECK(!lil_isa_available(foreign[i]) && lil_use_isa(&copy, foreign[i]) == LIL_ISA_MISSING);
        CHECK(copy.isa == model->isa && lil_isa_name(foreign[i]) != NULL);
    }
}

/* A run in memory that nobody has written. */
typedef struct fresh {
    const lil_model *model;
    uint8_t *arena;
    size_t arena_bytes;
} fresh;

/* Tell valgrind that what op `index` is about to write, scratch too, holds nothing: other buffers were there before. */
static void forget_outputs(const fresh *f, uint32_t index) {
    const lil_op op = lil_op_at(f->model->ops, index);
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        const lil_buffer b = lil_buffer_at(f->model->buffers, op.out[i]);
        if (op.out[i] != f->model->input && op.out[i] != f->model->output) {
            VALGRIND_MAKE_MEM_UNDEFINED(f->arena + b.offset, (size_t)b.rows * b.cols * (b.dtype == LIL_F32 ? 4 : 1));
        }
    }
    VALGRIND_MAKE_MEM_UNDEFINED(f->arena + f->model->arena_bytes, f->arena_bytes - f->model->arena_bytes);
}

static void before_next_op(void *observer, uint32_t op) {
    const fresh *f = observer;
    if (op + 1 < f->model->num_ops) {
        forget_outputs(f, op + 1);
    }
}

/* Nothing that the outputs depend on is read before this run has written it. */
static void run_fresh(const lil_model *model) {
    lil_model copy = *model;
    const size_t i = lil_input_bytes(model), o = lil_output_bytes(model);
    for (int isa = 0; isa < LIL_ISA_COUNT; isa++) {
        for (size_t count = 1; count <= TEAM && lil_use_isa(&copy, (lil_isa)isa) == LIL_OK; count += TEAM - 1) {
            const lil_team team = {.num_threads = count, .run = take_turns, .threads = &count};
            const size_t bytes = lil_arena_bytes(model, count);
            fresh f = {model, aligned_alloc(LIL_ALIGNMENT, bytes > 0 ? bytes : LIL_ALIGNMENT), bytes};
            const lil_context context = {.arena = f.arena,
                                         .arena_bytes = bytes,
                                         .team = count > 1 ? &team : NULL,
                                         .after_op = before_next_op,
                                         .observer = &f};
            float *output = allocate(o);
            CHECK(f.arena != NULL);
            for (uint32_t k = 0; k < model->num_golden; k++) {
                VALGRIND_MAKE_MEM_UNDEFINED(f.arena, bytes);
                VALGRIND_MAKE_MEM_UNDEFINED(output, o);
                forget_outputs(&f, 0);
                CHECK(lil_run(&copy, &context, model->golden_inputs + k * i, i, output, o) == LIL_OK);
                CHECK(memcmp(output, model->golden_outputs + k * o, o) == 0);
            }
            free(output);
            free(context.arena);
        }
    }
}

static void check_api(const lil_model *model) {
    run_memory m = memory_for(model, 0);
    const size_t a = lil_arena_bytes(model, 1), i = lil_input_bytes(model), o = lil_output_bytes(model);
    memset(m.input, 7, i);
    memset(m.output, 0, o);
    uint8_t *arena = m.arena;
    const lil_context context = {.arena = arena, .arena_bytes = a};
    const lil_team none = {.num_threads = 0, .run = NULL}, idle = {.num_threads = 1, .run = NULL};
    float *file = (float *)(void *)(uintptr_t)model->constants;
    lil_model other;
    CHECK(lil_open(NULL, model->file, model->file_bytes) == LIL_NULL_ARGUMENT);
    CHECK(lil_open(&other, NULL, model->file_bytes) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(NULL, &context, m.input, i, m.output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, NULL, m.input, i, m.output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, &(lil_context){.arena_bytes = a}, m.input, i, m.output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, &context, NULL, i, m.output, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, &context, m.input, i, NULL, o) == LIL_NULL_ARGUMENT);
    CHECK(lil_run(model, &(lil_context){.arena = arena, .arena_bytes = a - 1}, m.input, i, m.output, o) ==
          LIL_ARENA_SMALL);
    CHECK(lil_run(model, &(lil_context){.arena = arena + 32, .arena_bytes = a}, m.input, i, m.output, o) ==
          LIL_ARENA_MISALIGNED);
    CHECK(lil_run(model, &context, m.input, i - 1, m.output, o) == LIL_INPUT_SIZE);
    CHECK(lil_run(model, &context, m.input, i + 1, m.output, o) == LIL_INPUT_SIZE);
    CHECK(lil_run(model, &context, m.input, i, m.output, o - 4) == LIL_OUTPUT_SIZE);
    CHECK(lil_run(model, &context, m.input, i, (float *)(void *)((uint8_t *)m.output + 1), o) == LIL_OUTPUT_MISALIGNED);
    CHECK(lil_run(model, &context, arena + a - 1, i, m.output, o) == LIL_MEMORY_OVERLAP);
    CHECK(lil_run(model, &context, m.input, i, (float *)m.arena, o) == LIL_MEMORY_OVERLAP);
    CHECK(lil_run(model, &context, m.output, i, m.output, o) == LIL_MEMORY_OVERLAP);
    if ((uintptr_t)file % sizeof(float) == 0) {
        CHECK(lil_run(model, &context, m.input, i, file, o) == LIL_MEMORY_OVERLAP);
    }
    CHECK(lil_run(model, &(lil_context){.arena = arena, .arena_bytes = a, .team = &none}, m.input, i, m.output, o) ==
          LIL_BAD_TEAM);
    CHECK(lil_run(model, &(lil_context){.arena = arena, .arena_bytes = a, .team = &idle}, m.input, i, m.output, o) ==
          LIL_BAD_TEAM);
    CHECK(lil_arena_bytes(model, SIZE_MAX) == SIZE_MAX);
    CHECK(lil_arena_bytes(model, 0) == a && lil_arena_bytes(model, 3) == a + 2 * model->scratch_bytes);
    for (size_t k = 0; k < o / sizeof(float); k++) {
        CHECK(m.output[k] == 0.0f); /* untouched by every refusal */
    }
    CHECK(run(model, &m) == LIL_OK);
    CHECK(lil_run(model, &context, model->golden_inputs, i, m.output, o) == LIL_OK); /* reading from the file is fine */
    for (int status = -1; status <= LIL_STATUS_COUNT; status++) {
        const char *message = lil_status_message((lil_status)status);
        CHECK(message != NULL && strlen(message) > 5);
        CHECK((strcmp(message, "no such status") == 0) == (status < 0 || status == LIL_STATUS_COUNT));
        (void)lil_status_record((lil_status)status);
    }
    release(&m);
}

/* Whatever the thread has set, the golden outputs come, and the thread gets its setting back. */
static void check_environment(const lil_model *model) {
    CHECK(model->num_golden > 0);
    CHECK(run_golden(model) == 0);
#if defined(FE_UPWARD) && defined(FE_TOWARDZERO)
    const int modes[] = {FE_UPWARD, FE_TOWARDZERO};
    for (int i = 0; i < 2; i++) {
        CHECK(fesetround(modes[i]) == 0);
        CHECK(run_golden(model) == 0);
        CHECK(fegetround() == modes[i]);
    }
    fesetround(FE_TONEAREST);
#endif
#if defined(__x86_64__) || defined(__i386__)
    const unsigned int before = _mm_getcsr(), flushing = before | 0x8040; /* denormals flushed on the way in and out */
    _mm_setcsr(flushing);
    const int wrong = run_golden(model);
    const unsigned int after = _mm_getcsr();
    _mm_setcsr(before);
    CHECK(wrong == 0);
    CHECK((after & 0x8040) == 0x8040);
#endif
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    FILE *pack = fopen(argv[2], "rb");
    CHECK(pack != NULL);
    uint32_t size;
    for (size_t n = 0; fread(&size, sizeof size, 1, pack) == 1; n++) {
        const size_t shift = n % 5;
        uint8_t *memory = allocate(size + shift);
        CHECK(fread(memory + shift, 1, size, pack) == size);
        lil_model model;
        const lil_status status = lil_open(&model, memory + shift, size);
        if (strcmp(argv[1], "api") == 0) {
            CHECK(status == LIL_OK);
            check_api(&model);
            check_team(&model);
            check_isas(&model);
            check_environment(&model);
        } else if (strcmp(argv[1], "fresh") == 0) {
            CHECK(status == LIL_OK && model.num_golden > 0);
            run_fresh(&model);
        } else {
            printf("%d %u %d\n", (int)status, model.where, status == LIL_OK ? run_golden(&model) : 0);
            if (status == LIL_OK) {
                check_arena_is_not_read(&model);
            }
        }
        free(memory);
    }
    fclose(pack);
    return 0;
}
