/* Opens one file and runs it. What must hold:
 * - lil_open refuses with a defined status, or lil_run gives LIL_OK;
 * - each instruction set, and a team of threads in any order, gives the bits of the scalar kernels (any NaN is equal to
 *   any other);
 * - the file is not written, and what the arena held before does not show;
 * - under AddressSanitizer an op touches its own operands only: all the rest of the arena is poisoned while it runs;
 * - without it too (it does not see the instructions of AMX) an op writes its own outputs only, and the arena, and
 *   sometimes the file, end at a page that may not be touched;
 * - values of constants that change after opening may change the outputs, and nothing else (an index of stored blocks is
 *   no value: like the records, it must stay). */
#define _DEFAULT_SOURCE /* mmap's flags */
#include "execute.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lil_format.h"

#if defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN 1
#endif
#endif
#ifdef HAS_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#endif

#define HOLDS(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "property fails, execute.c:%d: %s\n", __LINE__, #condition);                              \
            abort();                                                                                                  \
        }                                                                                                             \
    } while (0)

enum { MAX_TEAM = 3, MAX_ARENA = 1 << 22, MAX_GUARDED_FILE = 1 << 20, PAGE = 1 << 16 };

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* `bytes` (of whole pages) of memory that a page follows which may not be touched. Its end. */
static uint8_t *guarded(size_t bytes) {
    uint8_t *memory = mmap(NULL, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HOLDS(memory != MAP_FAILED && mprotect(memory + bytes, PAGE, PROT_NONE) == 0);
    return memory + bytes;
}

/* lil_isa_available, asked once: each time is a few microseconds, or many on a virtual machine. */
static bool is_available(int isa) {
    static bool asked, available[LIL_ISA_COUNT];
    for (int i = 0; i < LIL_ISA_COUNT && !asked; i++) {
        available[i] = lil_isa_available((lil_isa)i);
    }
    asked = true;
    return available[isa];
}

const char *compared_isas(void) {
    static char names[128];
    names[0] = '\0';
    for (int i = 0; i < LIL_ISA_COUNT; i++) {
        if (is_available(i)) {
            strcat(strcat(names, i > 0 ? " " : ""), lil_isa_name((lil_isa)i)); /* some ten letters each */
        }
    }
    return names;
}

/* About how many multiplications one run takes. No product overflows: a buffer has fewer than 2^31 elements. */
static uint64_t work_of(const lil_model *model) {
    uint64_t work = 0;
    for (uint32_t i = 0; i < model->num_ops; i++) {
        const lil_op op = lil_op_at(model->ops, i);
        const lil_buffer in = lil_buffer_at(model->buffers, op.in[0]), out = lil_buffer_at(model->buffers, op.out[0]);
        const uint64_t elements = (uint64_t)in.rows * in.cols + (uint64_t)out.rows * out.cols;
        const bool is_product = op.kind == LIL_LINEAR || op.kind == LIL_LINEAR_ADD;
        work += elements + (is_product ? ((uint64_t)out.cols + 15) / 16 * 16 * out.rows * in.cols
                            : op.kind == LIL_ATTENTION ? 2 * (((uint64_t)op.a[1] + 15) / 16 * 16) * op.a[0] * in.rows * in.rows
                                                       : 0);
    }
    return work;
}

/* One lil_run and its memory. */
typedef struct trial {
    const lil_model *model;
    uint8_t *arena;
    size_t arena_bytes; /* for this run's threads */
    uint8_t *before;    /* NULL, or as many: the arena before the op that runs */
    const uint8_t *input;
    float *output;
    bool backwards; /* the order in which the team's tasks are run */
} trial;

static size_t element_bytes(uint32_t dtype) {
    return dtype == LIL_F32 ? 4 : 1;
}

static void expose_buffer(const trial *t, uint32_t index) {
    if (index != t->model->input && index != t->model->output) {
        const lil_buffer b = lil_buffer_at(t->model->buffers, index);
        ASAN_UNPOISON_MEMORY_REGION(t->arena + b.offset, (size_t)b.rows * b.cols * element_bytes(b.dtype));
    }
}

/* Let only the operands of op `index` be touched, and the scratch of the team's other threads. */
static void expose_op(const trial *t, uint32_t index) {
    if (t->before != NULL) {
        memcpy(t->before, t->arena, t->arena_bytes);
    }
    ASAN_POISON_MEMORY_REGION(t->arena, t->arena_bytes);
    if (index >= t->model->num_ops) {
        return;
    }
    const lil_op op = lil_op_at(t->model->ops, index);
    for (int i = 0; i < LIL_NUM_INPUTS; i++) {
        expose_buffer(t, op.in[i]); /* an unused slot names buffer 0: seldom one of the arena */
    }
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        expose_buffer(t, op.out[i]);
    }
    if (op.kind == LIL_ATTENTION) {
        ASAN_UNPOISON_MEMORY_REGION(t->arena + t->model->arena_bytes, t->arena_bytes - t->model->arena_bytes);
    }
}

/* Whether op `index` has left the arena as it was but for its outputs and its team's scratch. */
static bool wrote_only_outputs(const trial *t, uint32_t index) {
    const lil_op op = lil_op_at(t->model->ops, index);
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        if (op.out[i] != t->model->input && op.out[i] != t->model->output) {
            const lil_buffer b = lil_buffer_at(t->model->buffers, op.out[i]);
            memcpy(t->before + b.offset, t->arena + b.offset, (size_t)b.rows * b.cols * element_bytes(b.dtype));
        }
    }
    const size_t kept = op.kind == LIL_ATTENTION ? t->model->arena_bytes : t->arena_bytes;
    return memcmp(t->before, t->arena, kept) == 0;
}

static void after_op(void *observer, uint32_t op) {
    const trial *t = observer;
    ASAN_UNPOISON_MEMORY_REGION(t->arena, t->arena_bytes);
    HOLDS(t->before == NULL || wrote_only_outputs(t, op));
    expose_op(t, op + 1);
}

/* A team whose threads run one after another. */
typedef struct turns {
    size_t num_threads;
    bool backwards;
} turns;

static void take_turns(void *threads, void (*task)(void *argument, size_t thread), void *argument) {
    const turns *t = threads;
    for (size_t i = 0; i < t->num_threads; i++) {
        task(argument, t->backwards ? t->num_threads - 1 - i : i);
    }
}

static void run(trial *t, int isa, size_t num_threads, int fill) {
    static uint8_t *arena_end;
    lil_model model = *t->model;
    turns order = {num_threads, t->backwards};
    const lil_team team = {.num_threads = num_threads, .run = take_turns, .threads = &order};
    if (arena_end == NULL) {
        arena_end = guarded(MAX_ARENA);
    }
    t->arena_bytes = lil_arena_bytes(&model, num_threads);
    t->arena = arena_end - t->arena_bytes;
    const lil_context context = {.arena = t->arena,
                                 .arena_bytes = t->arena_bytes,
                                 .team = num_threads > 1 ? &team : NULL,
                                 .after_op = after_op,
                                 .observer = t};
    model.isa = (lil_isa)isa;
    memset(t->arena, fill, t->arena_bytes);
    memset(t->output, fill, lil_output_bytes(&model));
    expose_op(t, 0);
    HOLDS(lil_run(&model, &context, t->input, lil_input_bytes(&model), t->output, lil_output_bytes(&model)) == LIL_OK);
    ASAN_UNPOISON_MEMORY_REGION(t->arena, t->arena_bytes);
}

static bool same_bits(const float *a, const float *b, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(a[i] != a[i] && b[i] != b[i])) {
            return false;
        }
    }
    return true;
}

static bool all_finite(const float *values, size_t count) {
    bool finite = true;
    for (size_t i = 0; i < count; i++) {
        finite &= values[i] - values[i] == 0.0f;
    }
    return finite;
}

/* Pixels from `seed`: of all values, black, white, or black with some white. */
static void fill_input(uint8_t *input, size_t bytes, uint64_t seed) {
    const uint64_t kind = seed % 8;
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t pixel = (uint8_t)(next_random(&seed) >> 32);
        input[i] = kind == 0 ? 0 : kind == 1 ? 255 : kind == 2 ? (pixel > 250 ? 255 : 0) : pixel;
    }
}

/* Other constants in the file, which is the caller's own copy, for each instruction set: any outputs are right. */
static void change_constants(const trial *t, uint8_t *file, uint64_t seed) {
    const lil_model *model = t->model;
    uint8_t *constants = file + (model->constants - model->file);
    for (uint32_t i = 0; i < model->num_tensors; i++) {
        const lil_tensor tensor = lil_tensor_at(model->tensors, i);
        const size_t end = i + 1 < model->num_tensors ? (size_t)lil_tensor_at(model->tensors, i + 1).offset
                                                      : (size_t)(model->metadata - model->constants);
        for (size_t at = (size_t)tensor.offset; at < end && tensor.layout != LIL_BLOCKS; at++) {
            const uint64_t random = next_random(&seed);
            constants[at] = (uint8_t)((random >> 8) % 4 == 0 ? 0x80 : random >> 16);
        }
    }
    trial again = *t;
    for (int isa = 0; isa < LIL_ISA_COUNT; isa++) {
        if (is_available(isa)) {
            run(&again, isa, 1, 0xFF);
        }
    }
}

/* Everything that is run of one opened file. */
static bool run_all(const lil_model *model, uint8_t *file, uint64_t seed) {
    const size_t count = lil_output_bytes(model) / sizeof(float), arena_bytes = lil_arena_bytes(model, MAX_TEAM);
    uint8_t *input = malloc(lil_input_bytes(model)), *before = malloc(arena_bytes + 1);
    float *wanted = malloc(count * sizeof *wanted), *output = malloc(count * sizeof *output);
    HOLDS(input != NULL && before != NULL && wanted != NULL && output != NULL);
    trial t = {.model = model, .input = input, .output = wanted, .backwards = seed & 1};
    fill_input(input, lil_input_bytes(model), seed >> 1);
    run(&t, LIL_SCALAR, 1, 0xFF);
    const bool finite = all_finite(wanted, count);
    t.output = output;
    t.before = (seed >> 20) % 4 == 0 ? before : NULL;
    const int other = (int)((seed >> 4) % LIL_ISA_COUNT), team_isa = is_available(other) ? other : LIL_SCALAR;
    for (int isa = LIL_SCALAR + 1; isa < LIL_ISA_COUNT; isa++) {
        if (is_available(isa)) {
            run(&t, isa, 1, 0x5A);
            HOLDS(same_bits(wanted, output, count));
        }
    }
    run(&t, team_isa, 2 + (seed >> 8) % (MAX_TEAM - 1), 0xA5);
    HOLDS(same_bits(wanted, output, count));
    if ((seed >> 12) % 8 == 0) {
        change_constants(&t, file, seed);
    }
    free(input);
    free(before);
    free(wanted);
    free(output);
    return finite;
}

/* Where a copy of `size` bytes is put: at a multiple of 64, anywhere, or so that it ends where memory does. `*owned` is to
 * be freed. */
static uint8_t *place_for(size_t size, uint64_t seed, void **owned) {
    static uint8_t *end;
    if (end == NULL) {
        end = guarded(MAX_GUARDED_FILE);
    }
    *owned = NULL;
    if (seed % 4 == 0 && size <= MAX_GUARDED_FILE) {
        return end - size;
    }
    const size_t shift = seed % 4 == 1 ? (seed >> 2) % 64 : 0;
    HOLDS(posix_memalign(owned, LIL_ALIGNMENT, size + shift > 0 ? size + shift : 1) == 0);
    return (uint8_t *)*owned + shift; /* it ends where its allocation ends */
}

execution execute(const uint8_t *data, size_t size, uint64_t max_work) {
    uint64_t seed = 0x9E3779B97F4A7C15u; /* from the data, so that an input does the same each time */
    for (size_t i = 0; i < 24 && i < size; i++) {
        seed = (seed ^ data[i]) * 0x100000001B3u;
    }
    seed ^= seed >> 29;
    void *owned;
    uint8_t *file = place_for(size, seed >> 32, &owned);
    if (size > 0) {
        memcpy(file, data, size);
    }
    lil_model model;
    execution done = {.status = lil_open(&model, file, size)};
    HOLDS(size == 0 || memcmp(file, data, size) == 0);
    HOLDS(done.status >= LIL_OK && done.status != LIL_NULL_ARGUMENT && done.status <= LIL_UNWRITTEN);
    if (done.status == LIL_OK) {
        HOLDS(model.where == 0 && is_available((int)model.isa));
        done.ran = work_of(&model) <= max_work && lil_arena_bytes(&model, MAX_TEAM) <= MAX_ARENA;
        done.finite = done.ran && run_all(&model, file, seed | 1u << 31);
    }
    free(owned);
    return done;
}
