/* Runs the C core alone, for the tests in ../test_c_core.py, which compile it with the sanitizers.
 *
 *     driver files PACK    PACK: for each file a uint32 of its size, then its bytes. Opens each at a misaligned address
 *                          whose end is the end of its allocation, and runs it if it opens. One line a file:
 *                          status, where, golden examples that differ.
 *     driver api PACK      checks the refusals of running on good files, and that the thread's rounding does not matter.
 *     driver fresh PACK    opens and runs good files on each instruction set, alone and with a team, in memory that
 *                          nobody has written, for a tool that follows undefined bytes (valgrind). Prints nothing. */
#include <fenv.h>

#include "driver_api.h"

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

/* Examples other than the golden ones, made from `value`: an image, or three sequences. */
static batch some_batch(const lil_model *model, int value) {
    if (model->max_tokens == 0) {
        const batch b = image_of(model);
        memset(b.input, value, b.input_bytes);
        return b;
    }
    const uint32_t most = model->max_tokens, lengths[] = {1, most < 17 ? most : 17, most < 5 ? most : 5};
    const batch b = sequences_of(lengths, 3);
    for (size_t i = 0; i < b.num_tokens; i++) {
        ((uint32_t *)b.input)[i] = (uint32_t)(i + 1) * (uint32_t)value % model->num_token_ids;
    }
    return b;
}

/* What the arena held before must not show: nothing is read that this run has not written. */
static void check_arena_is_not_read(const lil_model *model) {
    for (int value = 0; value < 256; value += 51) {
        batch b = some_batch(model, value);
        float *first = outputs_of(model, &b, 0xFF), *second = outputs_of(model, &b, 0x40);
        CHECK(memcmp(first, second, output_bytes_of(model, &b)) == 0);
        free(first);
        free(second);
        free_batch(&b);
    }
}

/* A team of any size needs scratch for each thread, and gives the bits of one. */
static void check_team(const lil_model *model) {
    batch b = model->max_tokens > 0 ? golden_batch(model, 0, model->num_golden) : some_batch(model, 99);
    const size_t o = output_bytes_of(model, &b), alone = arena_bytes_of(model, 1, &b);
    float *wanted = outputs_of(model, &b, 0), *output = allocate(o);
    lil_context context = {.arena = allocate_arena(arena_bytes_of(model, 7, &b))};
    for (size_t count = 2; count <= 7; count++) {
        const lil_team team = {.num_threads = count, .run = take_turns, .threads = &count};
        context.team = &team;
        context.arena_bytes = arena_bytes_of(model, count, &b);
        CHECK(context.arena_bytes > arena_bytes_of(model, count - 1, &b));
        memset(context.arena, 0xA5, context.arena_bytes);
        CHECK(run_batch(model, &context, &b, output, o) == LIL_OK && memcmp(output, wanted, o) == 0);
    }
    size_t count = TEAM;
    const size_t needed = arena_bytes_of(model, TEAM, &b);
    const lil_team team = {.num_threads = TEAM, .run = take_turns, .threads = &count};
    const size_t too_small[] = {needed - 1, needed - model->scratch_bytes, alone, 0};
    memset(output, 0, o);
    context.team = &team;
    for (size_t k = 0; k < sizeof too_small / sizeof *too_small; k++) {
        context.arena_bytes = too_small[k];
        CHECK(run_batch(model, &context, &b, output, o) == LIL_ARENA_SMALL);
    }
    const lil_team endless = {.num_threads = SIZE_MAX, .run = take_turns, .threads = &count}; /* too much scratch */
    context = (lil_context){.arena = context.arena, .arena_bytes = needed, .team = &endless};
    CHECK(run_batch(model, &context, &b, output, o) == LIL_ARENA_SMALL);
    CHECK(untouched(output, o));
    free(context.arena);
    free(output);
    free(wanted);
    free_batch(&b);
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
    const batch *batch;
    uint8_t *arena;
    size_t arena_bytes;
} fresh;

/* Tell valgrind that what op `index` is about to write, scratch too, holds nothing: other buffers were there before. */
static void forget_outputs(const fresh *f, uint32_t index) {
    const lil_op op = lil_op_at(f->model->ops, index);
    const bool is_image = f->model->max_tokens == 0;
    const size_t units = is_image ? 1 : (f->batch->num_tokens + 15) / 16 * 16;
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        const lil_buffer b = lil_buffer_at(f->model->buffers, op.out[i]);
        const size_t rows = is_image ? b.rows : b.rows == 0 ? f->batch->num_tokens : f->batch->count;
        if (op.out[i] != f->model->input && op.out[i] != f->model->output) {
            VALGRIND_MAKE_MEM_UNDEFINED(f->arena + b.offset * units, rows * b.cols * lil_element_bytes(b.dtype));
        }
    }
    const size_t planned = f->model->arena_bytes * units;
    VALGRIND_MAKE_MEM_UNDEFINED(f->arena + planned, f->arena_bytes - planned);
}

static void before_next_op(void *observer, uint32_t op) {
    const fresh *f = observer;
    if (op + 1 < f->model->num_ops) {
        forget_outputs(f, op + 1);
    }
}

/* Nothing that the outputs depend on is read before this run has written it: golden examples [first, first + count). */
static void run_fresh_batch(const lil_model *model, size_t num_threads, uint32_t first, uint32_t count) {
    batch b = golden_batch(model, first, count);
    const lil_team team = {.num_threads = num_threads, .run = take_turns, .threads = &num_threads};
    const size_t bytes = arena_bytes_of(model, num_threads, &b), o = output_bytes_of(model, &b);
    fresh f = {model, &b, allocate_arena(bytes), bytes};
    const lil_context context = {.arena = f.arena,
                                 .arena_bytes = bytes,
                                 .team = num_threads > 1 ? &team : NULL,
                                 .after_op = before_next_op,
                                 .observer = &f};
    float *output = allocate(o);
    VALGRIND_MAKE_MEM_UNDEFINED(f.arena, bytes);
    VALGRIND_MAKE_MEM_UNDEFINED(output, o);
    forget_outputs(&f, 0);
    CHECK(run_batch(model, &context, &b, output, o) == LIL_OK);
    CHECK(memcmp(output, model->golden_outputs + first * lil_output_bytes(model), o) == 0);
    free(output);
    free(f.arena);
    free_batch(&b);
}

static void run_fresh(const lil_model *model) {
    lil_model copy = *model;
    for (int isa = 0; isa < LIL_ISA_COUNT; isa++) {
        for (size_t threads = 1; threads <= TEAM && lil_use_isa(&copy, (lil_isa)isa) == LIL_OK; threads += TEAM - 1) {
            if (model->max_tokens > 0) {
                run_fresh_batch(&copy, threads, 0, model->num_golden);
            }
            for (uint32_t k = 0; k < model->num_golden; k++) {
                run_fresh_batch(&copy, threads, k, 1);
            }
        }
    }
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
