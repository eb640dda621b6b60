/* lil_run and lil_run_sequences: op by op, through the table of kernels. */
#include <fenv.h>

#include "lil.h"
#include "lil_check.h"
#include "lil_checked.h"
#include "lil_isa.h"

const lil_kernel_table lil_kernels_scalar = {
    [LIL_NORMALIZE] = lil_op_normalize,
    [LIL_UNFOLD] = lil_op_unfold,
    [LIL_QUANTIZE] = lil_op_quantize,
    [LIL_LINEAR] = lil_op_linear,
    [LIL_LINEAR_ADD] = lil_op_linear_add,
    [LIL_LAYER_NORM] = lil_op_layer_norm,
    [LIL_ATTENTION] = lil_op_attention,
    [LIL_PREPEND_TOKEN] = lil_op_prepend_token,
    [LIL_ADD_POSITIONS] = lil_op_add_positions,
    [LIL_SELECT_ROW] = lil_op_select_row,
    [LIL_MEAN_ROWS] = lil_op_mean_rows,
    [LIL_EMBED_TOKENS] = lil_op_embed_tokens,
    [LIL_NORMALIZE_ROWS] = lil_op_normalize_rows,
    [LIL_SCALE_SHIFT] = lil_op_scale_shift,
    [LIL_NEIGHBORS] = lil_op_neighbors,
    [LIL_CONCAT] = lil_op_concat,
    [LIL_TABLE_ATTENTION] = lil_op_table_attention,
    [LIL_LINEAR_LEVELS] = lil_op_linear_levels,
};

static const lil_kernel_table *const kernels[LIL_ISA_COUNT] = {
    [LIL_SCALAR] = &lil_kernels_scalar,
#if LIL_X86
    [LIL_AVX2] = &lil_kernels_avx2,
    [LIL_AVX512] = &lil_kernels_avx512,
#endif
#if LIL_HAS_AMX
    [LIL_AMX] = &lil_kernels_amx,
#endif
#if LIL_ARM
    [LIL_NEON] = &lil_kernels_neon,
    [LIL_NEONDOT] = &lil_kernels_neondot,
#endif
};

/* Whose kernel serves where an instruction set has none of its own. */
static const uint8_t base[LIL_ISA_COUNT] = {[LIL_AMX] = LIL_AVX512, [LIL_NEONDOT] = LIL_NEON}; /* else LIL_SCALAR */

static lil_kernel kernel_of(lil_isa isa, uint16_t kind) {
    while ((*kernels[isa])[kind] == NULL) {
        isa = (lil_isa)base[isa]; /* ends: the scalar table is full */
    }
    return (*kernels[isa])[kind];
}

/* What the threads of a team divide among them: a kind's rows or heads; the kinds left out are done by one. Of several
 * sequences, what is `whole` is divided by sequences (and heads). */
enum { DIVIDE_ROWS = 1, DIVIDE_HEADS };
static const uint8_t divide[LIL_NUM_KINDS] = {
    [LIL_NORMALIZE] = DIVIDE_ROWS,    [LIL_UNFOLD] = DIVIDE_ROWS,        [LIL_QUANTIZE] = DIVIDE_ROWS,
    [LIL_LINEAR] = DIVIDE_ROWS,       [LIL_LINEAR_ADD] = DIVIDE_ROWS,    [LIL_LAYER_NORM] = DIVIDE_ROWS,
    [LIL_ATTENTION] = DIVIDE_HEADS,   [LIL_ADD_POSITIONS] = DIVIDE_ROWS, [LIL_EMBED_TOKENS] = DIVIDE_ROWS,
    [LIL_NORMALIZE_ROWS] = DIVIDE_ROWS, [LIL_SCALE_SHIFT] = DIVIDE_ROWS, [LIL_NEIGHBORS] = DIVIDE_ROWS,
    [LIL_CONCAT] = DIVIDE_ROWS,       [LIL_TABLE_ATTENTION] = DIVIDE_HEADS, [LIL_LINEAR_LEVELS] = DIVIDE_ROWS,
};

enum { MAX_RUN_TOKENS = 1 << 24 }; /* of all sequences that are run together */

/* One run: the caller's memory, and of a sequence program the sequences. */
typedef struct run {
    const lil_model *model;
    const lil_context *context;
    uint8_t *arena;
    const void *input;
    float *output;
    const uint32_t *lengths; /* NULL for an image */
    size_t num_sequences;
    size_t num_tokens; /* of all of them */
    size_t units;      /* what the file's arena numbers are multiplied with: 1, or the tokens that the arena holds */
} run;

/* SIZE_MAX where it is too much. */
static size_t arena_of(const lil_model *model, size_t num_threads, size_t units) {
    const size_t others = num_threads > 1 ? num_threads - 1 : 0; /* each needs a scratch besides the planned one */
    uint64_t scratch, bytes;
    if (!lil_mul(others, model->scratch_bytes, &scratch) || !lil_add(scratch, model->arena_bytes, &bytes) ||
        !lil_mul(bytes, units, &bytes) || bytes > SIZE_MAX) {
        return SIZE_MAX;
    }
    return (size_t)bytes;
}

static size_t units_of(size_t num_tokens) {
    return (num_tokens + LIL_TOKENS_STEP - 1) / LIL_TOKENS_STEP * LIL_TOKENS_STEP;
}

size_t lil_sequence_arena_bytes(const lil_model *model, size_t num_threads, size_t num_tokens) {
    return num_tokens > MAX_RUN_TOKENS ? SIZE_MAX : arena_of(model, num_threads, units_of(num_tokens));
}

size_t lil_arena_bytes(const lil_model *model, size_t num_threads) {
    return arena_of(model, num_threads, model->max_tokens > 0 ? units_of(model->max_tokens) : 1);
}

size_t lil_input_bytes(const lil_model *model) {
    return (size_t)model->input_rows * model->input_cols; /* at most 2^31 - 1, by lil_open */
}

size_t lil_output_bytes(const lil_model *model) {
    return model->output_cols * sizeof(float);
}

static bool ranges_overlap(const void *first, size_t first_bytes, const void *second, size_t second_bytes) {
    const uintptr_t a = (uintptr_t)first, b = (uintptr_t)second;
    return first_bytes > 0 && second_bytes > 0 && (a < b ? b - a < first_bytes : a - b < second_bytes);
}

static size_t num_threads(const lil_context *context) {
    return context->team == NULL ? 1 : context->team->num_threads;
}

static lil_status check_memory(const run *r, size_t input_bytes, size_t output_bytes, size_t wanted_output_bytes) {
    const lil_model *model = r->model;
    const lil_context *context = r->context;
    const size_t arena_bytes = arena_of(model, num_threads(context), r->units);
    if (r->input == NULL || r->output == NULL || (r->arena == NULL && arena_bytes > 0)) {
        return LIL_NULL_ARGUMENT;
    }
    if (context->team != NULL && (context->team->num_threads == 0 || context->team->run == NULL)) {
        return LIL_BAD_TEAM;
    }
    if (context->arena_bytes < arena_bytes) {
        return LIL_ARENA_SMALL;
    }
    if (arena_bytes > 0 && (uintptr_t)r->arena % LIL_ALIGNMENT != 0) {
        return LIL_ARENA_MISALIGNED;
    }
    if (model->max_tokens == 0 && input_bytes != lil_input_bytes(model)) {
        return LIL_INPUT_SIZE;
    }
    if (output_bytes != wanted_output_bytes) {
        return LIL_OUTPUT_SIZE;
    }
    if ((uintptr_t)r->output % sizeof(float) != 0) {
        return LIL_OUTPUT_MISALIGNED;
    }
    const size_t lengths_bytes = r->lengths == NULL ? 0 : r->num_sequences * sizeof *r->lengths;
    const bool overlap = ranges_overlap(r->arena, context->arena_bytes, r->input, input_bytes) ||
                         ranges_overlap(r->arena, context->arena_bytes, r->output, output_bytes) ||
                         ranges_overlap(r->arena, context->arena_bytes, r->lengths, lengths_bytes) ||
                         ranges_overlap(r->arena, context->arena_bytes, model->file, model->file_bytes) ||
                         ranges_overlap(r->output, output_bytes, r->input, input_bytes) ||
                         ranges_overlap(r->output, output_bytes, r->lengths, lengths_bytes) ||
                         ranges_overlap(r->output, output_bytes, model->file, model->file_bytes);
    return overlap ? LIL_MEMORY_OVERLAP : LIL_OK;
}

/* Where a buffer of the arena lies. NULL where there is no arena: only unused slots ask then. */
static void *arena_at(const run *r, uint64_t offset) {
    return r->arena == NULL ? NULL : r->arena + offset * r->units;
}

/* Rows of a buffer in this run. */
static size_t rows_of(const run *r, uint32_t rows) {
    return r->lengths == NULL ? rows : rows == 0 ? r->num_tokens : r->num_sequences;
}

/* The records that `op` names, as pointers. Unused slots name record 0: kernels do not look at them. */
static void resolve(const run *r, const lil_op *op, lil_call *call) {
    const lil_model *model = r->model;
    for (int i = 0; i < LIL_NUM_INPUTS; i++) {
        const lil_buffer buffer = lil_buffer_at(model->buffers, op->in[i]);
        const void *data = op->in[i] == model->input    ? r->input
                           : op->in[i] == model->output ? r->output
                                                        : arena_at(r, buffer.offset);
        call->in[i] = (lil_input){data, rows_of(r, buffer.rows), buffer.cols};
    }
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        const lil_buffer buffer = lil_buffer_at(model->buffers, op->out[i]);
        void *data = op->out[i] == model->output ? r->output : arena_at(r, buffer.offset);
        call->out[i] = (lil_output){data, rows_of(r, buffer.rows), buffer.cols};
    }
    for (int i = 0; i < LIL_NUM_TENSORS && model->num_tensors > 0; i++) {
        const lil_tensor tensor = lil_tensor_at(model->tensors, op->tensor[i]);
        const uint8_t *data = model->constants + tensor.offset;
        call->tensor[i] = (lil_constant){data, tensor.rows, tensor.cols, tensor.format, tensor.layout,
                                         (size_t)(model->file + model->file_bytes - data)};
    }
    memcpy(call->a, op->a, sizeof call->a);
}

/* One op, to be shared among threads. */
typedef struct job {
    lil_kernel kernel;
    const lil_call *call;
    const run *run;
    size_t count;         /* rows or heads in all; 1 where the op is not divided */
    int by;               /* DIVIDE_ROWS, DIVIDE_HEADS or 0: what these parts are of */
    size_t per_sequence;  /* 0, or parts of each sequence, where they are taken one by one */
    bool one_row;         /* then: a sequence's output is one row */
    size_t num_threads;
    uint8_t *scratch;     /* the first thread's: the op's own buffer, or NULL */
    uint8_t *scratches;   /* the other threads', one after another */
    size_t scratch_bytes; /* of each of those */
} job;

/* What is `whole` for parts [part->begin, part->end), counted through all sequences. */
static void work_on_sequences(const job *j, const lil_part *part) {
    const size_t each = j->per_sequence;
    size_t row = 0;
    for (size_t s = 0; s < j->run->num_sequences && s * each < part->end; row += j->run->lengths[s], s++) {
        if ((s + 1) * each <= part->begin) {
            continue;
        }
        const size_t first = s * each, length = j->run->lengths[s];
        lil_call call = *j->call;
        call.in[0].data = (const float *)call.in[0].data + row * call.in[0].cols;
        call.in[0].rows = length;
        call.out[0].data = (float *)call.out[0].data + (j->one_row ? s : row) * call.out[0].cols;
        call.out[0].rows = j->one_row ? 1 : length;
        lil_part own = {part->begin > first ? part->begin - first : 0,
                        part->end - first < each ? part->end - first : each, part->scratch};
        if (j->by != DIVIDE_HEADS) { /* all of it */
            own.end = length;
        }
        j->kernel(&call, &own);
    }
}

/* The part of a job that thread `thread` does, in the default floating-point environment: other libraries of the
 * process may have set another rounding or flush-to-zero for this thread. */
static void work(void *argument, size_t thread) {
    const job *j = argument;
    lil_part part = {j->count * thread / j->num_threads, j->count * (thread + 1) / j->num_threads, j->scratch};
    if (part.begin == part.end) {
        return;
    }
    if (thread > 0 && j->scratch != NULL) {
        part.scratch = j->scratches + (thread - 1) * j->scratch_bytes;
    }
#ifdef FE_DFL_ENV
    fenv_t environment;
    const bool changed = thread > 0 && fegetenv(&environment) == 0 && fesetenv(FE_DFL_ENV) == 0;
#endif
    if (j->per_sequence > 0) {
        work_on_sequences(j, &part);
    } else {
        j->kernel(j->call, &part);
    }
#ifdef FE_DFL_ENV
    if (changed) {
        (void)fesetenv(&environment);
    }
#endif
}

static void run_op(const run *r, const lil_op *op) {
    lil_call call;
    resolve(r, op, &call);
    const lil_context *context = r->context;
    const int by = divide[op->kind];
    job j = {
        .kernel = kernel_of(r->model->isa, op->kind),
        .call = &call,
        .run = r,
        .by = by,
        .count = by == DIVIDE_ROWS ? call.out[0].rows : by == DIVIDE_HEADS ? call.a[0] : 1,
        .num_threads = num_threads(context),
        .scratch = by == DIVIDE_HEADS ? call.out[1].data : NULL,
        .scratches = arena_at(r, r->model->arena_bytes),
        .scratch_bytes = r->model->scratch_bytes * r->units,
    };
    if (r->lengths != NULL && lil_rules[op->kind].whole) {
        j.per_sequence = by == DIVIDE_HEADS ? call.a[0] : 1;
        j.one_row = lil_buffer_at(r->model->buffers, op->out[0]).rows == 1;
        j.count = r->num_sequences * j.per_sequence;
    }
    const size_t elements = call.in[0].rows * call.in[0].cols + call.out[0].rows * call.out[0].cols;
    if (j.num_threads == 1 || j.count == 1 || elements < context->team->min_elements) {
        j.num_threads = 1;
        work(&j, 0);
    } else {
        context->team->run(context->team->threads, work, &j);
    }
}

static void run_ops(const run *r) {
#ifdef FE_DFL_ENV
    fenv_t environment;
    const bool changed = fegetenv(&environment) == 0 && fesetenv(FE_DFL_ENV) == 0;
#endif
    for (uint32_t i = 0; i < r->model->num_ops; i++) {
        const lil_op op = lil_op_at(r->model->ops, i);
        run_op(r, &op);
        if (r->context->after_op != NULL) {
            r->context->after_op(r->context->observer, i);
        }
    }
#ifdef FE_DFL_ENV
    if (changed) {
        (void)fesetenv(&environment);
    }
#endif
}

lil_status lil_run(const lil_model *model, const lil_context *context, const void *input, size_t input_bytes,
                   float *output, size_t output_bytes) {
    if (model == NULL || context == NULL) {
        return LIL_NULL_ARGUMENT;
    }
    if (model->max_tokens > 0) {
        return LIL_WRONG_PROGRAM;
    }
    const run r = {.model = model, .context = context, .arena = context->arena, .input = input, .output = output,
                   .units = 1};
    const lil_status status = check_memory(&r, input_bytes, output_bytes, lil_output_bytes(model));
    if (status == LIL_OK) {
        run_ops(&r);
    }
    return status;
}

/* Every id is known, whatever the sequences; `count` of them. */
static bool tokens_known(const lil_model *model, const uint32_t *tokens, size_t count) {
    bool known = true;
    for (size_t i = 0; i < count; i++) {
        known &= tokens[i] < model->num_token_ids;
    }
    return known;
}

lil_status lil_run_sequences(const lil_model *model, const lil_context *context, const uint32_t *tokens,
                             const uint32_t *lengths, size_t num_sequences, float *output, size_t output_bytes) {
    if (model == NULL || context == NULL || tokens == NULL || lengths == NULL) {
        return LIL_NULL_ARGUMENT;
    }
    if (model->max_tokens == 0) {
        return LIL_WRONG_PROGRAM;
    }
    size_t num_tokens = 0;
    bool good = num_sequences >= 1 && num_sequences <= MAX_RUN_TOKENS;
    for (size_t i = 0; i < num_sequences && good; i++) {
        num_tokens += lengths[i];
        good = lengths[i] >= 1 && lengths[i] <= model->max_tokens && num_tokens <= MAX_RUN_TOKENS;
    }
    if (!good) {
        return LIL_SEQUENCE_LENGTH;
    }
    const run r = {.model = model, .context = context, .arena = context->arena, .input = tokens, .output = output,
                   .lengths = lengths, .num_sequences = num_sequences, .num_tokens = num_tokens,
                   .units = units_of(num_tokens)};
    uint64_t wanted;
    if (!lil_mul(num_sequences, lil_output_bytes(model), &wanted) || wanted > SIZE_MAX) {
        return LIL_OUTPUT_SIZE;
    }
    const lil_status status = check_memory(&r, num_tokens * sizeof *tokens, output_bytes, (size_t)wanted);
    if (status != LIL_OK) {
        return status;
    }
    if (!tokens_known(model, tokens, num_tokens)) {
        return LIL_UNKNOWN_TOKEN;
    }
    run_ops(&r);
    return LIL_OK;
}
