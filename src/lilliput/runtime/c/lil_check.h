/* The parts of lil_open, one file each, in the order in which they run. Internal. */
#ifndef LIL_CHECK_H
#define LIL_CHECK_H

#include <stdbool.h>

#include "lil.h"
#include "lil_format.h"

/* What a tensor slot of an op holds. */
typedef enum lil_slot {
    LIL_F32_SLOT = 1,
    LIL_BF16_SLOT,
    LIL_SCALE_SLOT, /* bf16, every value >= 0 */
    LIL_CODE_ROWS_SLOT,
    LIL_CODE_TILES_SLOT /* in tiles or blocks */
} lil_slot;

/* Which programs may hold a kind. */
enum { LIL_ANY_PROGRAM, LIL_IMAGE_PROGRAM, LIL_SEQUENCE_PROGRAM };

/* The records that an op names, in slot order; unused slots are zero. */
typedef struct lil_operands {
    lil_buffer in[LIL_NUM_INPUTS];
    lil_buffer out[LIL_NUM_OUTPUTS];
    lil_tensor tensor[LIL_NUM_TENSORS];
    const uint32_t *a;
    uint32_t version;    /* of the format */
    uint32_t max_tokens; /* 0: of an image program */
} lil_operands;

/* One kind of op: what its slots hold (0: unused), how many attributes it has, and its rule for shapes and
 * attributes. */
typedef struct lil_rule {
    uint8_t in[LIL_NUM_INPUTS];      /* dtypes; u8 and u32 are the model's input, for the page allows no other */
    uint8_t out[LIL_NUM_OUTPUTS];    /* dtypes; u8 is scratch */
    uint8_t tensor[LIL_NUM_TENSORS]; /* lil_slot */
    uint8_t num_attributes;
    uint8_t program;                 /* LIL_ANY_PROGRAM or the one that it may be in */
    bool whole;                      /* looks at an example's rows together */
    lil_status (*fits)(const lil_operands *operands);
} lil_rule;

/* A product of levels whose scales are constants, and part of the weights: its slot 1 names the levels again. */
static inline bool lil_has_no_scales(const lil_op *op) {
    const bool is_product = op->kind == LIL_LINEAR || op->kind == LIL_LINEAR_ADD || op->kind == LIL_LINEAR_LEVELS;
    return is_product && op->in[1] == op->in[0];
}

/* By kind; kind 0 is none. */
extern const lil_rule lil_rules[LIL_NUM_KINDS];

/* Return `status`, naming record `where` in the model. */
static inline lil_status lil_refuse(lil_model *model, lil_status status, uint32_t where) {
    model->where = where;
    return status;
}

static inline bool lil_all_zero(const uint8_t *bytes, uint64_t count) {
    uint8_t any = 0;
    for (uint64_t i = 0; i < count; i++) {
        any |= bytes[i];
    }
    return any == 0;
}

/* Tensors and their constants: in order, each at the first multiple of 64 after the one before, the last one to the
 * end of the `constants_bytes`. Header and sections have been verified. */
lil_status lil_check_tensors(lil_model *model, uint64_t constants_bytes);

/* Each op on its own: kind, slots, types, shapes, attributes. Header, buffers and tensors have been verified. */
lil_status lil_check_ops(lil_model *model);

/* What concerns several ops: scales, the order of writes and reads, and that nothing that is needed is written over.
 * Each op on its own has been verified. */
lil_status lil_check_flow(lil_model *model);

#endif
