/* lil_check_ops: each op on its own, by the rule of its kind: what its slots hold, and how their shapes fit. */
#include "lil_check.h"
#include "lil_checked.h"
#include "lil_format.h"
#include "lil_kernels.h"

static bool has_shape(uint32_t rows, uint32_t cols, uint64_t wanted_rows, uint64_t wanted_cols) {
    return rows == wanted_rows && cols == wanted_cols;
}

static bool is(const lil_buffer *buffer, uint64_t rows, uint64_t cols) {
    return has_shape(buffer->rows, buffer->cols, rows, cols);
}

static bool holds(const lil_tensor *tensor, uint64_t rows, uint64_t cols) {
    return has_shape(tensor->rows, tensor->cols, rows, cols);
}

static lil_status shape_status(bool fits) {
    return fits ? LIL_OK : LIL_BAD_OP_SHAPE;
}

static bool is_finite(uint32_t bits) {
    return (bits & 0x7F800000u) != 0x7F800000u;
}

static lil_status normalize_fits(const lil_operands *o) {
    const lil_buffer *x = &o->in[0];
    return shape_status(is(&o->out[0], x->rows, x->cols) && holds(&o->tensor[0], 1, x->cols) &&
                        holds(&o->tensor[1], 1, x->cols));
}

/* Number of windows along a side of the image; false where the kernel is larger than the padded side. */
static bool windows(uint64_t side, uint64_t kernel, uint64_t stride, uint64_t padding, uint64_t *count) {
    uint64_t padded;
    if (!lil_mul(padding, 2, &padded) || !lil_add(padded, side, &padded) || kernel > padded) {
        return false;
    }
    return lil_add((padded - kernel) / stride, 1, count);
}

static lil_status unfold_fits(const lil_operands *o) {
    const uint32_t height = o->a[0], width = o->a[1], kernel = o->a[2], stride = o->a[3], padding = o->a[4];
    uint64_t pixels, rows, across, cols;
    if (height < 1 || width < 1 || kernel < 1 || stride < 1 || padding >= kernel) {
        return LIL_BAD_OP_ATTRIBUTE;
    }
    return shape_status(lil_mul(height, width, &pixels) && pixels == o->in[0].rows &&
                        windows(height, kernel, stride, padding, &rows) &&
                        windows(width, kernel, stride, padding, &across) && lil_mul(rows, across, &rows) &&
                        lil_mul(kernel, kernel, &cols) && lil_mul(cols, o->in[0].cols, &cols) &&
                        is(&o->out[0], rows, cols));
}

/* Whether levels may have so many bits; 0 is 8. */
static bool are_bits(const lil_operands *o, uint32_t bits) {
    return bits == 0 || (o->version > 1 && (bits == 4 || bits == 6));
}

static lil_status quantize_fits(const lil_operands *o) {
    const lil_buffer *x = &o->in[0];
    uint64_t padded;
    if (!are_bits(o, o->a[0])) {
        return LIL_BAD_OP_ATTRIBUTE;
    }
    return shape_status(lil_align(x->cols, 8, &padded) && is(&o->out[0], x->rows, padded) &&
                        is(&o->out[1], x->rows, 1));
}

static bool product_fits(const lil_operands *o) {
    const lil_buffer *x = &o->in[0];
    const lil_tensor *codes = &o->tensor[0];
    uint64_t padded;
    return codes->cols <= LIL_MAX_DEPTH && lil_align(codes->cols, 8, &padded) && is(x, x->rows, padded) &&
           (o->in[1].dtype == LIL_I8 || is(&o->in[1], x->rows, 1)) && holds(&o->tensor[1], 1, codes->rows) &&
           holds(&o->tensor[2], 1, codes->rows) && o->out[0].rows == x->rows;
}

static lil_status linear_fits(const lil_operands *o) {
    const uint32_t last = o->version > 1 ? FINISH_TANH : FINISH_GELU;
    return o->a[0] > last ? LIL_BAD_OP_ATTRIBUTE
                          : shape_status(product_fits(o) && o->out[0].cols == o->tensor[0].rows);
}

static lil_status linear_levels_fits(const lil_operands *o) {
    const uint32_t outputs = o->tensor[0].rows;
    uint64_t padded;
    if (o->a[0] > FINISH_GELU_TANH || !are_bits(o, o->a[1])) {
        return LIL_BAD_OP_ATTRIBUTE;
    }
    return shape_status(product_fits(o) && lil_align(outputs, 8, &padded) && o->out[0].cols == padded &&
                        holds(&o->tensor[3], 1, outputs));
}

static lil_status linear_add_fits(const lil_operands *o) {
    return shape_status(product_fits(o) && o->out[0].cols == o->tensor[0].rows &&
                        is(&o->in[2], o->out[0].rows, o->out[0].cols));
}

static lil_status layer_norm_fits(const lil_operands *o) {
    const lil_buffer *x = &o->in[0];
    if (!is_finite(o->a[0]) || !(lil_float_from_bits(o->a[0]) > 0.0f)) {
        return LIL_BAD_OP_ATTRIBUTE;
    }
    return shape_status(is(&o->out[0], x->rows, x->cols) && holds(&o->tensor[0], 1, x->cols) &&
                        holds(&o->tensor[1], 1, x->cols));
}

/* Bytes of scratch of one example of an image program. */
static bool scratch_bytes(uint32_t num_tokens, uint32_t head_dim, bool by_table, uint64_t *bytes) {
    lil_attention_scratch exact;
    lil_table_scratch table;
    const bool fits = by_table ? lil_table_layout(num_tokens, head_dim, &table)
                               : lil_attention_layout(num_tokens, head_dim, &exact);
    if (fits) {
        *bytes = by_table ? table.bytes : exact.bytes;
    }
    return fits;
}

static lil_status any_attention_fits(const lil_operands *o, bool by_table) {
    const uint32_t num_heads = o->a[0], head_dim = o->a[1], num_queries = o->a[3], num_tokens = o->in[0].rows;
    uint64_t block, cols, bytes;
    if (num_heads < 1 || head_dim < 1 || head_dim > LIL_MAX_DEPTH || !is_finite(o->a[2]) ||
        num_queries >= (o->max_tokens > 0 ? 2 : num_tokens)) {
        return LIL_BAD_OP_ATTRIBUTE;
    }
    if (!lil_mul(num_heads, head_dim, &block) || !lil_mul(block, 3, &cols) || !is(&o->in[0], num_tokens, cols) ||
        !is(&o->out[0], num_queries == 0 ? num_tokens : num_queries, block)) {
        return LIL_BAD_OP_SHAPE;
    }
    if (o->max_tokens > 0) {
        return shape_status(is(&o->out[1], num_tokens, lil_attention_token_bytes(head_dim, by_table)));
    }
    return shape_status(num_tokens <= LIL_MAX_DEPTH && scratch_bytes(num_tokens, head_dim, by_table, &bytes) &&
                        is(&o->out[1], 1, bytes));
}

static lil_status attention_fits(const lil_operands *o) {
    return any_attention_fits(o, false);
}

static lil_status table_attention_fits(const lil_operands *o) {
    return any_attention_fits(o, true);
}

static lil_status prepend_token_fits(const lil_operands *o) {
    const lil_buffer *x = &o->in[0];
    uint64_t rows;
    return shape_status(holds(&o->tensor[0], 1, x->cols) && holds(&o->tensor[1], 1, 1) && lil_add(x->rows, 1, &rows) &&
                        is(&o->out[0], rows, x->cols));
}

static lil_status add_positions_fits(const lil_operands *o) {
    const lil_buffer *x = &o->in[0];
    const uint32_t rows = o->max_tokens > 0 ? o->max_tokens : x->rows;
    return shape_status(holds(&o->tensor[0], rows, x->cols) && holds(&o->tensor[1], 1, rows) &&
                        is(&o->out[0], x->rows, x->cols));
}

static lil_status select_row_fits(const lil_operands *o) {
    const uint32_t rows = o->max_tokens > 0 ? 1 : o->in[0].rows; /* the first is there, whatever the length */
    return o->a[0] >= rows ? LIL_BAD_OP_ATTRIBUTE : shape_status(is(&o->out[0], 1, o->in[0].cols));
}

static lil_status mean_rows_fits(const lil_operands *o) {
    return shape_status(is(&o->out[0], 1, o->in[0].cols));
}

static lil_status embed_tokens_fits(const lil_operands *o) {
    const lil_tensor *codes = &o->tensor[0];
    return shape_status(o->in[0].cols == 1 && holds(&o->tensor[1], 1, codes->rows) &&
                        is(&o->out[0], o->in[0].rows, codes->cols));
}

static lil_status normalize_rows_fits(const lil_operands *o) {
    return shape_status(is(&o->out[0], o->in[0].rows, o->in[0].cols));
}

static lil_status scale_shift_fits(const lil_operands *o) {
    const lil_buffer *x = &o->in[0];
    return shape_status(is(&o->out[0], x->rows, x->cols) && holds(&o->tensor[0], 1, x->cols) &&
                        holds(&o->tensor[1], 1, x->cols));
}

static lil_status neighbors_fits(const lil_operands *o) {
    return shape_status(is(&o->out[0], o->in[0].rows, 3 * (uint64_t)o->in[0].cols));
}

static lil_status concat_fits(const lil_operands *o) {
    return shape_status(o->in[1].rows == o->in[0].rows &&
                        is(&o->out[0], o->in[0].rows, (uint64_t)o->in[0].cols + o->in[1].cols));
}

#define PRODUCT_SLOTS LIL_CODE_TILES_SLOT, LIL_SCALE_SLOT, LIL_BF16_SLOT
#define EMBEDDING_TENSORS {LIL_CODE_ROWS_SLOT, LIL_SCALE_SLOT}

#define NORM_TENSORS {LIL_BF16_SLOT, LIL_BF16_SLOT}

const lil_rule lil_rules[LIL_NUM_KINDS] = {
    /* in, out, tensor, number of attributes, program, whole, fits */
    [LIL_NORMALIZE] = {{LIL_U8}, {LIL_F32}, {LIL_F32_SLOT, LIL_F32_SLOT}, 0, LIL_IMAGE_PROGRAM, false, normalize_fits},
    [LIL_UNFOLD] = {{LIL_F32}, {LIL_F32}, {0}, 5, LIL_IMAGE_PROGRAM, false, unfold_fits},
    [LIL_QUANTIZE] = {{LIL_F32}, {LIL_I8, LIL_F32}, {0}, 1, LIL_ANY_PROGRAM, false, quantize_fits},
    [LIL_LINEAR] = {{LIL_I8, LIL_F32}, {LIL_F32}, {PRODUCT_SLOTS}, 1, LIL_ANY_PROGRAM, false, linear_fits},
    [LIL_LINEAR_ADD] = {{LIL_I8, LIL_F32, LIL_F32}, {LIL_F32}, {PRODUCT_SLOTS}, 0, LIL_ANY_PROGRAM, false,
                        linear_add_fits},
    [LIL_LAYER_NORM] = {{LIL_F32}, {LIL_F32}, NORM_TENSORS, 1, LIL_ANY_PROGRAM, false, layer_norm_fits},
    [LIL_ATTENTION] = {{LIL_F32}, {LIL_F32, LIL_U8}, {0}, 4, LIL_ANY_PROGRAM, true, attention_fits},
    [LIL_PREPEND_TOKEN] = {{LIL_F32}, {LIL_F32}, EMBEDDING_TENSORS, 0, LIL_IMAGE_PROGRAM, false, prepend_token_fits},
    [LIL_ADD_POSITIONS] = {{LIL_F32}, {LIL_F32}, EMBEDDING_TENSORS, 0, LIL_ANY_PROGRAM, true, add_positions_fits},
    [LIL_SELECT_ROW] = {{LIL_F32}, {LIL_F32}, {0}, 1, LIL_ANY_PROGRAM, true, select_row_fits},
    [LIL_MEAN_ROWS] = {{LIL_F32}, {LIL_F32}, {0}, 0, LIL_ANY_PROGRAM, true, mean_rows_fits},
    [LIL_EMBED_TOKENS] = {{LIL_U32}, {LIL_F32}, EMBEDDING_TENSORS, 0, LIL_SEQUENCE_PROGRAM, false, embed_tokens_fits},
    [LIL_NORMALIZE_ROWS] = {{LIL_F32}, {LIL_F32}, {0}, 0, LIL_SEQUENCE_PROGRAM, false, normalize_rows_fits},
    [LIL_SCALE_SHIFT] = {{LIL_F32}, {LIL_F32}, NORM_TENSORS, 0, LIL_SEQUENCE_PROGRAM, false, scale_shift_fits},
    [LIL_NEIGHBORS] = {{LIL_F32}, {LIL_F32}, {0}, 0, LIL_SEQUENCE_PROGRAM, true, neighbors_fits},
    [LIL_TABLE_ATTENTION] = {{LIL_F32}, {LIL_F32, LIL_U8}, {0}, 4, LIL_ANY_PROGRAM, true, table_attention_fits},
    [LIL_LINEAR_LEVELS] = {{LIL_I8, LIL_F32}, {LIL_I8}, {PRODUCT_SLOTS, LIL_BF16_SLOT}, 2, LIL_ANY_PROGRAM, false,
                           linear_levels_fits},
    [LIL_CONCAT] = {{LIL_F32, LIL_F32}, {LIL_F32}, {0}, 0, LIL_SEQUENCE_PROGRAM, false, concat_fits},
};

static bool tensor_suits(const lil_tensor *tensor, uint8_t slot) {
    switch (slot) {
    case LIL_F32_SLOT: return tensor->format == LIL_FORMAT_F32;
    case LIL_BF16_SLOT:
    case LIL_SCALE_SLOT: return tensor->format == LIL_BF16;
    case LIL_CODE_ROWS_SLOT: return tensor->format >= LIL_INT8 && tensor->layout == LIL_ROWS;
    default: return tensor->format >= LIL_INT8 && (tensor->layout == LIL_TILES || tensor->layout == LIL_BLOCKS);
    }
}

/* Indices in range, unused slots and attributes 0, types as the rule says; fills `o`. */
static lil_status check_slots(const lil_model *model, const lil_op *op, const lil_rule *rule, lil_operands *o) {
    lil_status status = LIL_OK;
    for (int i = 0; i < LIL_NUM_INPUTS && status == LIL_OK; i++) {
        if (op->in[i] >= (rule->in[i] ? model->num_buffers : 1)) {
            status = LIL_BAD_OP_SLOT;
        } else if (rule->in[i] && (o->in[i] = lil_buffer_at(model->buffers, op->in[i])).dtype != rule->in[i] &&
                   !(i == 1 && lil_has_no_scales(op))) {
            status = LIL_BAD_OP_TYPE;
        }
    }
    for (int i = 0; i < LIL_NUM_OUTPUTS && status == LIL_OK; i++) {
        if (op->out[i] >= (rule->out[i] ? model->num_buffers : 1)) {
            status = LIL_BAD_OP_SLOT;
        } else if (rule->out[i] && (o->out[i] = lil_buffer_at(model->buffers, op->out[i])).dtype != rule->out[i]) {
            status = LIL_BAD_OP_TYPE;
        }
    }
    for (int i = 0; i < LIL_NUM_TENSORS && status == LIL_OK; i++) {
        if (op->tensor[i] >= (rule->tensor[i] ? model->num_tensors : 1)) {
            status = LIL_BAD_OP_SLOT;
        } else if (rule->tensor[i]) {
            o->tensor[i] = lil_tensor_at(model->tensors, op->tensor[i]);
            status = tensor_suits(&o->tensor[i], rule->tensor[i]) ? LIL_OK : LIL_BAD_OP_TYPE;
        }
    }
    for (int i = rule->num_attributes; i < LIL_NUM_ATTRIBUTES && status == LIL_OK; i++) {
        status = op->a[i] == 0 ? LIL_OK : LIL_BAD_OP_ATTRIBUTE;
    }
    return status;
}

/* Whether only version 2 can hold the op. (A `quantize` of fewer bits is refused in a file of version 1 by its rule.) */
static bool is_newer(const lil_op *op) {
    const bool by_attribute = (op->kind == LIL_LINEAR && op->a[0] > FINISH_GELU) ||
                              (op->kind == LIL_QUANTIZE && op->a[0] != 0);
    return op->kind > LIL_MEAN_ROWS || lil_has_no_scales(op) || by_attribute;
}

/* Whether only version 2 can hold the program, as far as its tensors and its kind say. */
static bool has_newer(const lil_model *model) {
    bool newer = model->max_tokens > 0;
    for (uint32_t i = 0; i < model->num_tensors; i++) {
        newer |= lil_tensor_at(model->tensors, i).format >= LIL_APOT4;
    }
    return newer;
}

lil_status lil_check_ops(lil_model *model) {
    const uint8_t other = model->max_tokens > 0 ? LIL_IMAGE_PROGRAM : LIL_SEQUENCE_PROGRAM;
    uint32_t version = has_newer(model) ? 2 : 1; /* that the program needs */
    model->num_token_ids = UINT32_MAX;
    for (uint32_t i = 0; i < model->num_ops; i++) {
        const lil_op op = lil_op_at(model->ops, i);
        if (op.kind < LIL_NORMALIZE || op.kind >= LIL_NUM_KINDS || lil_rules[op.kind].program == other ||
            (model->version == 1 && op.kind > LIL_MEAN_ROWS)) { /* its activations: by the op's rule */
            return lil_refuse(model, LIL_BAD_OP_KIND, i);
        }
        version = is_newer(&op) ? 2 : version;
        lil_operands o = {.a = op.a, .version = model->version, .max_tokens = model->max_tokens};
        lil_status status = check_slots(model, &op, &lil_rules[op.kind], &o);
        if (status == LIL_OK && lil_rules[op.kind].whole && model->max_tokens > 0 && o.in[0].rows != 0) {
            status = LIL_BAD_OP_SHAPE;
        }
        if (status == LIL_OK) {
            status = lil_rules[op.kind].fits(&o);
        }
        if (status != LIL_OK) {
            return lil_refuse(model, status, i);
        }
        if ((op.kind == LIL_ATTENTION || op.kind == LIL_TABLE_ATTENTION) && o.out[1].cols > model->scratch_bytes) {
            model->scratch_bytes = o.out[1].cols; /* a multiple of LIL_ALIGNMENT (of a sequence program: of 4) */
        }
        if (op.kind == LIL_EMBED_TOKENS && o.tensor[0].rows < model->num_token_ids) {
            model->num_token_ids = o.tensor[0].rows;
        }
    }
    return version == model->version ? LIL_OK : LIL_BAD_VERSION;
}
