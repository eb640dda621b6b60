/* Mutations of a `model.lil` that know its structure. A draft is a file taken apart; what is too large for one is not
 * taken. Nothing here uses the checks of the core: it is a second reading of docs/format.md. */
#ifndef LIL_FUZZ_MUTATE_H
#define LIL_FUZZ_MUTATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lil_format.h"

enum { MAX_DRAFT_RECORDS = 64, MAX_TENSOR_BYTES = 4096, MAX_METADATA_BYTES = 256, MAX_GOLDEN_BYTES = 512,
       MAX_VOCABULARY_BYTES = 256 };

typedef struct draft {
    lil_header header;
    uint32_t num_buffers, num_tensors, num_ops, num_golden;
    lil_buffer buffers[MAX_DRAFT_RECORDS];
    lil_tensor tensors[MAX_DRAFT_RECORDS];
    lil_op ops[MAX_DRAFT_RECORDS];
    uint8_t values[MAX_DRAFT_RECORDS][MAX_TENSOR_BYTES]; /* of each tensor, stored as in the file */
    size_t value_bytes[MAX_DRAFT_RECORDS];
    uint8_t metadata[MAX_METADATA_BYTES];
    size_t metadata_bytes;
    uint8_t vocabulary[MAX_VOCABULARY_BYTES]; /* of version 2 */
    size_t vocabulary_bytes;
    uint32_t num_words;
} draft;

/* A random number below `limit` (at least 1). The generator is seeded by fuzz_seed. */
uint32_t below(uint32_t limit);
void fuzz_seed(uint64_t seed);

static inline size_t align(size_t size, size_t alignment) {
    return (size + alignment - 1) / alignment * alignment;
}

/* The blocks of a tensor in `tiles` or `blocks`. */
typedef struct grid {
    size_t rows, cols;
} grid;

static inline grid grid_of(const lil_tensor *t) {
    return (grid){align(t->rows, 16) / 16, align(t->cols, lil_block_cols(t->format)) / lil_block_cols(t->format)};
}

/* Bytes that a tensor takes by its record and, in `blocks`, by its index, of which `available` bytes may be read (values
 * NULL: the most that it could take). 0 where format, layout or shape are not allowed, or the bytes too many. */
size_t tensor_bytes_of(const lil_tensor *tensor, const uint8_t *values, size_t available);

/* Give a tensor of a draft as many values as it takes, all of which its format allows; `is_scale`: none below 0. What was
 * there stays where it can, what is new is random. */
void make_values_valid(draft *d, uint32_t index, bool is_scale);

/* Give a draft a valid vocabulary of 0 to 3 tokens. */
void make_vocabulary(draft *d);

/* Take a file apart. False where that cannot be done. */
bool take_apart(draft *d, const uint8_t *file, size_t size);

/* Put it together: the bytes written, at most `capacity`; 0 where it does not fit. Checksum and sizes are right. */
size_t put_together(const draft *d, uint8_t *file, size_t capacity);

/* Make whatever the draft holds a valid program: ops in static single assignment over buffers of inferred shapes,
 * attributes in range, tensors of the wanted shapes, formats and values, a planned arena. */
void make_valid(draft *d);

/* Write the right size and checksum into a whole file of at least a header. */
void seal(uint8_t *file, size_t size);

/* Change a file in place; gives its new size, at most `capacity`. `change_bytes` changes bytes that are not understood:
 * it takes and gives what this function does. */
size_t mutate(uint8_t *file, size_t size, size_t capacity, uint64_t seed,
              size_t (*change_bytes)(uint8_t *file, size_t size, size_t capacity));

/* Such a function: flips, bytes, cuts, extensions, swaps of blocks. */
size_t change_some_bytes(uint8_t *file, size_t size, size_t capacity);

#endif
