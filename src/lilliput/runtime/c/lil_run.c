/* lil_run: one example, op by op, through the table of kernels. */
#include <fenv.h>

#include "lil.h"
#include "lil_kernels.h"

static const lil_kernel kernels[LIL_NUM_KINDS] = {
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

/* The caller's memory for one run. */
typedef struct memory {
    uint8_t *arena;
    const void *input;
    float *output;
} memory;

size_t lil_arena_bytes(const lil_model *model) {
    return model->arena_bytes;
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

static lil_status check_memory(const lil_model *model, const memory *m, size_t arena_bytes, size_t input_bytes,
                               size_t output_bytes) {
    if (m->input == NULL || m->output == NULL || (m->arena == NULL && model->arena_bytes > 0)) {
        return LIL_NULL_ARGUMENT;
    }
    if (arena_bytes < model->arena_bytes) {
        return LIL_ARENA_SMALL;
    }
    if (model->arena_bytes > 0 && (uintptr_t)m->arena % LIL_ALIGNMENT != 0) {
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
    const bool overlap = ranges_overlap(m->arena, arena_bytes, m->input, input_bytes) ||
                         ranges_overlap(m->arena, arena_bytes, m->output, output_bytes) ||
                         ranges_overlap(m->arena, arena_bytes, model->file, model->file_bytes) ||
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
        call->tensor[i] = (lil_constant){model->constants + tensor.offset, tensor.rows, tensor.cols, tensor.format};
    }
    memcpy(call->a, op->a, sizeof call->a);
}

lil_status lil_run(const lil_model *model, void *arena, size_t arena_bytes, const void *input, size_t input_bytes,
                   float *output, size_t output_bytes) {
    if (model == NULL) {
        return LIL_NULL_ARGUMENT;
    }
    const memory m = {arena, input, output};
    const lil_status status = check_memory(model, &m, arena_bytes, input_bytes, output_bytes);
    if (status != LIL_OK) {
        return status;
    }
#ifdef FE_DFL_ENV
    /* Other libraries of the process may have set another rounding or flush-to-zero for this thread. */
    fenv_t environment;
    const bool changed = fegetenv(&environment) == 0 && fesetenv(FE_DFL_ENV) == 0;
#endif
    for (uint32_t i = 0; i < model->num_ops; i++) {
        const lil_op op = lil_op_at(model->ops, i);
        lil_call call;
        resolve(model, &m, &op, &call);
        kernels[op.kind](&call);
    }
#ifdef FE_DFL_ENV
    if (changed) {
        (void)fesetenv(&environment);
    }
#endif
    return LIL_OK;
}
