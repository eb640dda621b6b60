/* The two halves of lil_open. Internal. */
#ifndef LIL_CHECK_H
#define LIL_CHECK_H

#include "lil.h"

/* Return `status`, naming record `where` in the model. */
static inline lil_status lil_refuse(lil_model *model, lil_status status, uint32_t where) {
    model->where = where;
    return status;
}

/* Verify the ops of a model whose buffers and tensors have been verified: kinds, slots, types, shapes, attributes, scales,
 * the order of writes and reads, and that nothing overlaps. */
lil_status lil_check_ops(lil_model *model);

#endif
