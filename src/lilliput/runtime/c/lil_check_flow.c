/* lil_check_flow: what concerns several ops. Nothing may be allocated, so records are looked at in windows of so
 * many that a little stack is enough, one pass over all ops for each window. */
#include <stdbool.h>

#include "lil_check.h"

enum { WINDOW = 4096, LIFE_WINDOW = 256 };

typedef struct bitset {
    uint32_t words[WINDOW / 32];
} bitset;

static bool has(const bitset *set, uint32_t i) {
    return set->words[i / 32] >> i % 32 & 1u;
}

static void add(bitset *set, uint32_t i) {
    set->words[i / 32] |= 1u << i % 32;
}

static uint32_t smaller(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* Whether each of `count` tensors from `first` on is in a scale slot of an op. */
static bitset find_scales(const lil_model *model, uint32_t first, uint32_t count) {
    bitset scales = {{0}};
    for (uint32_t i = 0; i < model->num_ops; i++) {
        const lil_op op = lil_op_at(model->ops, i);
        for (int j = 0; j < LIL_NUM_TENSORS; j++) {
            const uint32_t tensor = op.tensor[j] - first; /* below the window: wraps to huge */
            if (lil_rules[op.kind].tensor[j] == LIL_SCALE_SLOT && tensor < count) {
                add(&scales, tensor);
            }
        }
    }
    return scales;
}

/* Every scale is >= 0 (-0 is). */
static lil_status check_scales(lil_model *model) {
    for (uint32_t first = 0; first < model->num_tensors; first += WINDOW) {
        const uint32_t count = smaller(model->num_tensors - first, WINDOW);
        const bitset scales = find_scales(model, first, count);
        for (uint32_t i = 0; i < count; i++) {
            const lil_tensor tensor = lil_tensor_at(model->tensors, first + i);
            const size_t values = has(&scales, i) ? (size_t)tensor.rows * tensor.cols : 0;
            bool good = true;
            for (size_t j = 0; j < values; j++) {
                good &= lil_bf16_at(model->constants + tensor.offset, j) >= 0.0f;
            }
            if (!good) {
                return lil_refuse(model, LIL_BAD_CONSTANT, first + i);
            }
        }
    }
    return LIL_OK;
}

/* Op `op` reads only what is in `written`, and writes only what is not, of the `count` buffers from `first` on. */
static lil_status follow(const lil_model *model, const lil_op *op, uint32_t first, uint32_t count, bitset *written) {
    const lil_rule *rule = &lil_rules[op->kind];
    for (int j = 0; j < LIL_NUM_INPUTS; j++) {
        const uint32_t buffer = op->in[j] - first; /* below the window: wraps to huge */
        if (rule->in[j] && buffer < count) {
            if (!has(written, buffer)) {
                return LIL_BAD_OP_ORDER;
            }
            if (rule->in[j] == LIL_U8 && op->in[j] != model->input) {
                return LIL_BAD_OP_SCRATCH; /* ops write no other u8, and no u32 at all */
            }
        }
    }
    for (int j = 0; j < LIL_NUM_OUTPUTS; j++) {
        const uint32_t buffer = op->out[j] - first;
        if (rule->out[j] && buffer < count) {
            if (has(written, buffer)) {
                return LIL_BAD_OP_ORDER;
            }
            add(written, buffer);
        }
    }
    return LIL_OK;
}

/* Each buffer but the input is written by exactly one op, before any op reads it; no op reads scratch. */
static lil_status check_order(lil_model *model) {
    for (uint32_t first = 0; first < model->num_buffers; first += WINDOW) {
        const uint32_t count = smaller(model->num_buffers - first, WINDOW);
        bitset written = {{0}};
        if (model->input - first < count) {
            add(&written, model->input - first);
        }
        for (uint32_t i = 0; i < model->num_ops; i++) {
            const lil_op op = lil_op_at(model->ops, i);
            const lil_status status = follow(model, &op, first, count, &written);
            if (status != LIL_OK) {
                return lil_refuse(model, status, i);
            }
        }
        for (uint32_t i = 0; i < count; i++) {
            if (!has(&written, i)) {
                return lil_refuse(model, LIL_UNWRITTEN, first + i);
            }
        }
    }
    return LIL_OK;
}

/* The ops from the one that writes a buffer to the last that reads it. */
typedef struct lifetime {
    uint16_t first;
    uint16_t last;
} lifetime;

static void find_lifetimes(const lil_model *model, uint32_t first, uint32_t count, lifetime lives[LIFE_WINDOW]) {
    for (uint32_t i = 0; i < model->num_ops; i++) {
        const lil_op op = lil_op_at(model->ops, i);
        for (int j = 0; j < LIL_NUM_INPUTS; j++) {
            const uint32_t buffer = op.in[j] - first;
            if (lil_rules[op.kind].in[j] && buffer < count) {
                lives[buffer].last = (uint16_t)i; /* at most LIL_MAX_RECORDS ops */
            }
        }
        for (int j = 0; j < LIL_NUM_OUTPUTS; j++) {
            const uint32_t buffer = op.out[j] - first;
            if (lil_rules[op.kind].out[j] && buffer < count) {
                lives[buffer] = (lifetime){(uint16_t)i, (uint16_t)i};
            }
        }
    }
}

/* A buffer's bytes in the arena; none for the caller's own two. */
typedef struct extent {
    uint64_t start;
    uint64_t end;
} extent;

static extent extent_of(const lil_model *model, uint32_t index) {
    const lil_buffer buffer = lil_buffer_at(model->buffers, index);
    const uint64_t rows = buffer.rows == 0 ? 1 : buffer.rows; /* a sequence program's extents are those of a token */
    const uint64_t bytes = rows * buffer.cols * lil_element_bytes(buffer.dtype); /* <= 2^31 - 1 */
    const bool is_callers = index == model->input || index == model->output;
    return (extent){buffer.offset, is_callers ? buffer.offset : buffer.offset + bytes};
}

/* Whether op `op` writes another buffer than `index` into its bytes, `kept`. */
static bool writes_into(const lil_model *model, const lil_op *op, uint32_t index, extent kept) {
    for (int j = 0; j < LIL_NUM_OUTPUTS; j++) {
        if (lil_rules[op->kind].out[j] && op->out[j] != index) {
            const extent written = extent_of(model, op->out[j]);
            if (written.start < kept.end && kept.start < written.end && written.start < written.end) {
                return true;
            }
        }
    }
    return false;
}

/* Buffers that are alive together do not overlap: none is written into while another is alive. */
static lil_status check_overlap(lil_model *model) {
    for (uint32_t first = 0; first < model->num_buffers; first += LIFE_WINDOW) {
        const uint32_t count = smaller(model->num_buffers - first, LIFE_WINDOW);
        lifetime lives[LIFE_WINDOW];
        find_lifetimes(model, first, count, lives);
        for (uint32_t index = first; index < first + count; index++) {
            const extent kept = extent_of(model, index);
            if (kept.start == kept.end) {
                continue; /* the caller's: never written by find_lifetimes if it is the input */
            }
            for (uint32_t i = lives[index - first].first; i <= lives[index - first].last; i++) {
                const lil_op op = lil_op_at(model->ops, i);
                if (writes_into(model, &op, index, kept)) {
                    return lil_refuse(model, LIL_BAD_OP_OVERLAP, i);
                }
            }
        }
    }
    return LIL_OK;
}

lil_status lil_check_flow(lil_model *model) {
    lil_status status = check_scales(model);
    if (status == LIL_OK) {
        status = check_order(model);
    }
    return status == LIL_OK ? check_overlap(model) : status;
}
