/* lil_run: one example, op by op, through the table of kernels. */
#include <fenv.h>

#include "lil.h"
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

/* What the threads of a team divide among them: a kind's rows or heads; the kinds left out are done by one. */
enum { DIVIDE_ROWS = 1, DIVIDE_HEADS };
static const uint8_t divide[LIL_NUM_KINDS] = {
    [LIL_NORMALIZE] = DIVIDE_ROWS,  [LIL_UNFOLD] = DIVIDE_ROWS,     [LIL_QUANTIZE] = DIVIDE_ROWS,
    [LIL_LINEAR] = DIVIDE_ROWS,     [LIL_LINEAR_ADD] = DIVIDE_ROWS, [LIL_LAYER_NORM] = DIVIDE_ROWS,
    [LIL_ATTENTION] = DIVIDE_HEADS, [LIL_ADD_POSITIONS] = DIVIDE_ROWS,
};

/* The caller's memory for one run. */
typedef struct memory {
    uint8_t *arena;
    const void *input;
    float *output;
} memory;

size_t lil_arena_bytes(const lil_model *model, size_t num_threads) {
    const size_t others = num_threads > 1 ? num_threads - 1 : 0; /* each needs a scratch besides the planned one */
    if (model->scratch_bytes > 0 && others > (SIZE_MAX - model->arena_bytes) / model->scratch_bytes) {
        return SIZE_MAX;
    }
    return model->arena_bytes + others * model->scratch_bytes;
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

static lil_status check_memory(const lil_model *model, const lil_context *context, const memory *m, size_t input_bytes,
                               size_t output_bytes) {
    const size_t arena_bytes = lil_arena_bytes(model, num_threads(context));
    if (m->input == NULL || m->output == NULL || (m->arena == NULL && arena_bytes > 0)) {
        return LIL_NULL_ARGUMENT;
    }
    if (context->team != NULL && (context->team->num_threads == 0 || context->team->run == NULL)) {
        return LIL_BAD_TEAM;
    }
    if (context->arena_bytes < arena_bytes) {
        return LIL_ARENA_SMALL;
    }
    if (arena_bytes > 0 && (uintptr_t)m->arena % LIL_ALIGNMENT != 0) {
        return LIL_ARENA_MISALIGNED;
    }
    if (input_bytes != lil_input_bytes(model)) {
        return LIL_INPUT_SIZE;
    }
    if (output_bytes != lil_output_bytes(model)) {
        return LIL_OUTPUT_SIZE;
    }
    if ((uintptr_t)m->output % sizeof(float) != 0) {
        return LIL_OUTPUT_MISALIGNED;
    }
    const bool overlap = ranges_overlap(m->arena, context->arena_bytes, m->input, input_bytes) ||
                         ranges_overlap(m->arena, context->arena_bytes, m->output, output_bytes) ||
                         ranges_overlap(m->arena, context->arena_bytes, model->file, model->file_bytes) ||
                         ranges_overlap(m->output, output_bytes, m->input, input_bytes) ||
                         ranges_overlap(m->output, output_bytes, model->file, model->file_bytes);
    return overlap ? LIL_MEMORY_OVERLAP : LIL_OK;
}

/* Where a buffer of the arena lies. NULL where there is no arena: only unused slots ask then. */
static void *arena_at(const memory *m, uint64_t offset) {
    return m->arena == NULL ? NULL : m->arena + offset;
}

/* The records that `op` names, as pointers. Unused slots name record 0: kernels do not look at them. */
static void resolve(const lil_model *model, const memory *m, const lil_op *op, lil_call *call) {
    for (int i = 0; i < LIL_NUM_INPUTS; i++) {
        const lil_buffer buffer = lil_buffer_at(model->buffers, op->in[i]);
        const void *data = op->in[i] == model->input    ? m->input
                           : op->in[i] == model->output ? m->output
                                                        : arena_at(m, buffer.offset);
        call->in[i] = (lil_input){data, buffer.rows, buffer.cols};
    }
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        const lil_buffer buffer = lil_buffer_at(model->buffers, op->out[i]);
        void *data = op->out[i] == model->output ? m->output : arena_at(m, buffer.offset);
        call->out[i] = (lil_output){data, buffer.rows, buffer.cols};
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
    size_t count;         /* rows or heads in all; 1 where the op is not divided */
    size_t num_threads;
    uint8_t *scratch;     /* the first thread's: the op's own buffer, or NULL */
    uint8_t *scratches;   /* the other threads', one after another */
    size_t scratch_bytes; /* of each of those */
} job;

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
    j->kernel(j->call, &part);
#ifdef FE_DFL_ENV
    if (changed) {
        (void)fesetenv(&environment);
    }
#endif
}

static void run_op(const lil_model *model, const lil_context *context, const memory *m, const lil_op *op) {
    lil_call call;
    resolve(model, m, op, &call);
    const int by = divide[op->kind];
    job j = {
        .kernel = kernel_of(model->isa, op->kind),
        .call = &call,
        .count = by == DIVIDE_ROWS ? call.out[0].rows : by == DIVIDE_HEADS ? call.a[0] : 1,
        .num_threads = num_threads(context),
        .scratch = by == DIVIDE_HEADS ? call.out[1].data : NULL,
        .scratches = arena_at(m, model->arena_bytes),
        .scratch_bytes = model->scratch_bytes,
    };
    const size_t elements = call.in[0].rows * call.in[0].cols + call.out[0].rows * call.out[0].cols;
    if (j.num_threads == 1 || j.count == 1 || elements < context->team->min_elements) {
        j.num_threads = 1;
        work(&j, 0);
    } else {
        context->team->run(context->team->threads, work, &j);
    }
}

lil_status lil_run(const lil_model *model, const lil_context *context, const void *input, size_t input_bytes,
                   float *output, size_t output_bytes) {
    if (model == NULL || context == NULL) {
        return LIL_NULL_ARGUMENT;
    }
    const memory m = {context->arena, input, output};
    const lil_status status = check_memory(model, context, &m, input_bytes, output_bytes);
    if (status != LIL_OK) {
        return status;
    }
#ifdef FE_DFL_ENV
    fenv_t environment;
    const bool changed = fegetenv(&environment) == 0 && fesetenv(FE_DFL_ENV) == 0;
#endif
    for (uint32_t i = 0; i < model->num_ops; i++) {
        const lil_op op = lil_op_at(model->ops, i);
        run_op(model, context, &m, &op);
        if (context->after_op != NULL) {
            context->after_op(context->observer, i);
        }
    }
#ifdef FE_DFL_ENV
    if (changed) {
        (void)fesetenv(&environment);
    }
#endif
    return LIL_OK;
}
