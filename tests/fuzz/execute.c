/* Opens one file and runs it: on an image, or on a pack of sequences. What must hold:
 * - lil_open refuses with a defined status, or running gives LIL_OK;
 * - each sequence of a pack gives the bits that it gives alone;
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
enum { MAX_SEQUENCES = 5, MAX_LENGTH = 40 };

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

static bool is_attention(uint16_t kind) {
    return kind == LIL_ATTENTION || kind == LIL_TABLE_ATTENTION;
}

/* What is run: an image, or sequences of token ids. */
typedef struct example {
    uint8_t *input;
    size_t input_bytes;
    uint32_t lengths[MAX_SEQUENCES];
    size_t num_sequences; /* 0: an image */
    size_t num_tokens;
    size_t units; /* what the file's arena numbers are multiplied with */
    size_t count; /* of output values */
} example;

/* Rows of a buffer; of a scratch of sequences also those that pad its bytes. */
static size_t rows_of(const example *e, const lil_buffer *b) {
    if (e->num_sequences == 0) {
        return b->rows;
    }
    return b->rows == 1 ? e->num_sequences : b->dtype == LIL_U8 ? e->units : e->num_tokens;
}

/* About how many multiplications one run takes. No product overflows: a buffer has fewer than 2^31 elements. */
static uint64_t work_of(const lil_model *model, const example *e) {
    uint64_t work = 0;
    for (uint32_t i = 0; i < model->num_ops; i++) {
        const lil_op op = lil_op_at(model->ops, i);
        const lil_buffer in = lil_buffer_at(model->buffers, op.in[0]), out = lil_buffer_at(model->buffers, op.out[0]);
        const uint64_t rows = rows_of(e, &in), out_rows = rows_of(e, &out);
        const bool is_product = op.kind == LIL_LINEAR || op.kind == LIL_LINEAR_ADD || op.kind == LIL_LINEAR_LEVELS;
        work += rows * in.cols + out_rows * out.cols;
        work += is_product              ? ((uint64_t)out.cols + 15) / 16 * 16 * out_rows * in.cols
                : is_attention(op.kind) ? 2 * (((uint64_t)op.a[1] + 15) / 16 * 16) * op.a[0] * rows * rows
                                        : 0;
    }
    return work;
}

/* One lil_run and its memory. */
typedef struct trial {
    const lil_model *model;
    uint8_t *arena;
    size_t arena_bytes; /* for this run's threads */
    uint8_t *before;    /* NULL, or as many: the arena before the op that runs */
    const example *example;
    float *output;
    bool backwards; /* the order in which the team's tasks are run */
} trial;

/* Where a buffer of the arena lies in this run, and its bytes. */
static uint8_t *place_of(const trial *t, const lil_buffer *b) {
    return t->arena + b->offset * t->example->units;
}

static size_t bytes_of(const trial *t, const lil_buffer *b) {
    return rows_of(t->example, b) * b->cols * (b->dtype == LIL_F32 ? 4 : 1);
}

static size_t planned_bytes(const trial *t) {
    return t->model->arena_bytes * t->example->units;
}

static void expose_buffer(const trial *t, uint32_t index) {
    if (index != t->model->input && index != t->model->output) {
        const lil_buffer b = lil_buffer_at(t->model->buffers, index);
        ASAN_UNPOISON_MEMORY_REGION(place_of(t, &b), bytes_of(t, &b));
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
    if (is_attention(op.kind)) {
        ASAN_UNPOISON_MEMORY_REGION(t->arena + planned_bytes(t), t->arena_bytes - planned_bytes(t));
    }
}

/* Whether op `index` has left the arena as it was but for its outputs and its team's scratch. */
static bool wrote_only_outputs(const trial *t, uint32_t index) {
    const lil_op op = lil_op_at(t->model->ops, index);
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        if (op.out[i] != t->model->input && op.out[i] != t->model->output) {
            const lil_buffer b = lil_buffer_at(t->model->buffers, op.out[i]);
            memcpy(t->before + (place_of(t, &b) - t->arena), place_of(t, &b), bytes_of(t, &b));
        }
    }
    const size_t kept = is_attention(op.kind) ? planned_bytes(t) : t->arena_bytes;
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

static size_t arena_bytes_of(const lil_model *model, size_t num_threads, const example *e) {
    return model->max_tokens == 0 ? lil_arena_bytes(model, num_threads)
                                  : lil_sequence_arena_bytes(model, num_threads, e->num_tokens);
}

static lil_status call(const lil_model *model, const lil_context *context, const trial *t) {
    const example *e = t->example;
    const size_t output_bytes = e->count * sizeof *t->output;
    if (model->max_tokens == 0) {
        return lil_run(model, context, e->input, e->input_bytes, t->output, output_bytes);
    }
    const uint32_t *ids = (const uint32_t *)(const void *)e->input; /* from malloc */
    return lil_run_sequences(model, context, ids, e->lengths, e->num_sequences, t->output, output_bytes);
}

static void run(trial *t, int isa, size_t num_threads, int fill) {
    static uint8_t *arena_end;
    lil_model model = *t->model;
    turns order = {num_threads, t->backwards};
    const lil_team team = {.num_threads = num_threads, .run = take_turns, .threads = &order};
    if (arena_end == NULL) {
        arena_end = guarded(MAX_ARENA);
    }
    t->arena_bytes = arena_bytes_of(&model, num_threads, t->example);
    t->arena = arena_end - t->arena_bytes;
    const lil_context context = {.arena = t->arena,
                                 .arena_bytes = t->arena_bytes,
                                 .team = num_threads > 1 ? &team : NULL,
                                 .after_op = after_op,
                                 .observer = t};
    model.isa = (lil_isa)isa;
    memset(t->arena, fill, t->arena_bytes);
    memset(t->output, fill, t->example->count * sizeof *t->output);
    expose_op(t, 0);
    HOLDS(call(&model, &context, t) == LIL_OK);
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

/* The shape of an image; or of sequences as short as `shortest` says: each one token, or up to as many as are interesting. */
static example make_example(const lil_model *model, uint64_t seed, bool shortest) {
    example e = {.units = 1, .count = model->output_cols, .input_bytes = lil_input_bytes(model)};
    if (model->max_tokens > 0) {
        const uint32_t most = shortest ? 1 : model->max_tokens < MAX_LENGTH ? model->max_tokens : MAX_LENGTH;
        uint64_t random = seed ^ 0x5DEECE66Du;
        e.num_sequences = 1 + next_random(&random) % MAX_SEQUENCES;
        for (size_t i = 0; i < e.num_sequences; i++) {
            const uint64_t choice = next_random(&random) >> 16;
            e.lengths[i] = choice % 4 == 0 ? most : 1 + (uint32_t)(choice / 4 % most);
            e.num_tokens += e.lengths[i];
        }
        e.units = (e.num_tokens + 15) / 16 * 16;
        e.count *= e.num_sequences;
        e.input_bytes = e.num_tokens * sizeof(uint32_t);
    }
    return e;
}

/* Its pixels or token ids. */
static void fill_example(const lil_model *model, example *e, uint64_t seed) {
    e->input = malloc(e->input_bytes);
    HOLDS(e->input != NULL);
    fill_input(e->input, e->input_bytes, seed >> 1);
    for (size_t i = 0; i < e->num_tokens; i++) {
        const uint32_t id = lil_u32_at(e->input, i) % model->num_token_ids;
        memcpy(e->input + 4 * i, &id, sizeof id);
    }
}

/* Each sequence alone gives its part of the outputs `wanted` of all. */
static void check_alone(const trial *all, const float *wanted) {
    const example *e = all->example;
    const size_t cols = all->model->output_cols;
    size_t start = 0;
    for (size_t i = 0; i < e->num_sequences; start += e->lengths[i], i++) {
        const example one = {.input = e->input + 4 * start,
                             .input_bytes = 4 * e->lengths[i],
                             .lengths = {e->lengths[i]},
                             .num_sequences = 1,
                             .num_tokens = e->lengths[i],
                             .units = ((size_t)e->lengths[i] + 15) / 16 * 16,
                             .count = cols};
        trial t = *all;
        t.example = &one;
        t.before = NULL;
        run(&t, LIL_SCALAR, 1, 0x33);
        HOLDS(same_bits(wanted + i * cols, t.output, cols));
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
static bool run_all(const lil_model *model, const example *e, uint8_t *file, uint64_t seed) {
    const size_t count = e->count, arena_bytes = arena_bytes_of(model, MAX_TEAM, e);
    uint8_t *before = malloc(arena_bytes + 1);
    float *wanted = malloc(count * sizeof *wanted), *output = malloc(count * sizeof *output);
    HOLDS(before != NULL && wanted != NULL && output != NULL);
    trial t = {.model = model, .example = e, .output = wanted, .backwards = seed & 1};
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
    check_alone(&t, wanted);
    if ((seed >> 12) % 8 == 0) {
        change_constants(&t, file, seed);
    }
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
        for (int shortest = 0; shortest < 2 && !done.ran; shortest++) {
            example e = make_example(&model, seed | 1u << 31, shortest);
            done.ran = work_of(&model, &e) <= max_work && arena_bytes_of(&model, MAX_TEAM, &e) <= MAX_ARENA;
            if (done.ran) {
                fill_example(&model, &e, seed | 1u << 31);
                done.finite = run_all(&model, &e, file, seed | 1u << 31);
                free(e.input);
            }
        }
    }
    free(owned);
    return done;
}
