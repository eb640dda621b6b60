/* The fixed records of a `model.lil` (docs/format.md, section 2) and how they are read: always copied out, because a
 * file may lie at any address. Internal. */
#ifndef LIL_FORMAT_H
#define LIL_FORMAT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the records are little-endian and are copied as they are: this target would need byte swaps"
#endif

#define LIL_VERSION 2u /* the newest: the first with sequence programs */
#define LIL_FILE_ALIGNMENT 64u
#define LIL_MAX_DIMENSION (1u << 24) /* rows, cols */
#define LIL_MAX_DEPTH 65536u         /* K of an integer product: 65536 * 127 * 127 < 2^31 */
#define LIL_MAX_BYTES 0x7FFFFFFFu    /* a buffer's, a tensor's, the arena's */
#define LIL_MAX_BLOCK_CODES (1u << 26) /* of all tensors in `blocks`, with what they leave out */
#define LIL_MAX_RECORDS 65535u
#define LIL_MAX_TOKENS 65536u /* of a sequence */
#define LIL_NUM_SECTIONS 7u   /* of version 2; version 1 has one less */
#define LIL_TOKENS_STEP 16u   /* an arena holds a multiple of so many tokens */
#define LIL_TOKEN_ALIGNMENT 4u /* of bytes a token */
#define LIL_NUM_INPUTS 3
#define LIL_NUM_OUTPUTS 2
#define LIL_NUM_TENSORS 4
#define LIL_NUM_ATTRIBUTES 5

static const uint8_t lil_magic[8] = {0x89, 0x4C, 0x49, 0x4C, 0x0D, 0x0A, 0x1A, 0x0A};

enum { LIL_U8 = 1, LIL_I8, LIL_F32, LIL_U32 }; /* buffer dtypes */
enum { /* tensor formats; from LIL_APOT4 on of version 2 */
    LIL_FORMAT_F32 = 1,
    LIL_BF16,
    LIL_INT8,
    LIL_INT4,
    LIL_POT4,
    LIL_INT6,
    LIL_APOT4,
    LIL_APOT6,
    LIL_NUM_FORMATS
};
enum { LIL_ROWS = 0, LIL_TILES = 1, LIL_BLOCKS = 2, LIL_NUM_LAYOUTS }; /* tensor layouts */

enum {
    LIL_SECTION_BUFFERS = 1,
    LIL_SECTION_TENSORS,
    LIL_SECTION_OPS,
    LIL_SECTION_CONSTANTS,
    LIL_SECTION_METADATA,
    LIL_SECTION_GOLDEN,
    LIL_SECTION_VOCABULARY
};

enum {
    LIL_NORMALIZE = 1,
    LIL_UNFOLD,
    LIL_QUANTIZE,
    LIL_LINEAR,
    LIL_LINEAR_ADD,
    LIL_LAYER_NORM,
    LIL_ATTENTION,
    LIL_PREPEND_TOKEN,
    LIL_ADD_POSITIONS,
    LIL_SELECT_ROW,
    LIL_MEAN_ROWS,
    LIL_EMBED_TOKENS,
    LIL_NORMALIZE_ROWS,
    LIL_SCALE_SHIFT,
    LIL_NEIGHBORS,
    LIL_CONCAT,
    LIL_TABLE_ATTENTION,
    LIL_LINEAR_LEVELS,
    LIL_NUM_KINDS
};

typedef struct lil_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t checksum; /* CRC-32 of the bytes from 16 on */
    uint64_t file_bytes;
    uint64_t arena_bytes;
    uint32_t input;
    uint32_t output;
    uint32_t num_sections;
    uint32_t max_tokens; /* 0 in version 1 */
} lil_header;
static_assert(sizeof(lil_header) == 48, "the file's header");

typedef struct lil_section {
    uint32_t kind;
    uint32_t count;
    uint64_t offset;
    uint64_t bytes;
} lil_section;
static_assert(sizeof(lil_section) == 24, "the file's section entry");

typedef struct lil_buffer {
    uint32_t dtype;
    uint32_t rows; /* of a sequence program: 0, a row a token, or 1 */
    uint32_t cols;
    uint32_t reserved;
    uint64_t offset; /* in the arena; of a sequence program: bytes a token */
} lil_buffer;
static_assert(sizeof(lil_buffer) == 24, "the file's buffer record");

typedef struct lil_tensor {
    uint16_t format;
    uint16_t layout;
    uint32_t rows;
    uint32_t cols;
    uint32_t reserved;
    uint64_t offset; /* in the constants section */
} lil_tensor;
static_assert(sizeof(lil_tensor) == 24, "the file's tensor record");

typedef struct lil_op {
    uint16_t kind;
    uint16_t in[LIL_NUM_INPUTS];
    uint16_t out[LIL_NUM_OUTPUTS];
    uint16_t tensor[LIL_NUM_TENSORS];
    uint32_t a[LIL_NUM_ATTRIBUTES];
} lil_op;
static_assert(sizeof(lil_op) == 40, "the file's op record");

/* Record `i` of a packed array of them; the caller has checked that it is there. */
static inline lil_buffer lil_buffer_at(const uint8_t *records, uint32_t i) {
    lil_buffer record;
    memcpy(&record, records + (size_t)i * sizeof record, sizeof record);
    return record;
}

static inline lil_tensor lil_tensor_at(const uint8_t *records, uint32_t i) {
    lil_tensor record;
    memcpy(&record, records + (size_t)i * sizeof record, sizeof record);
    return record;
}

static inline lil_op lil_op_at(const uint8_t *records, uint32_t i) {
    lil_op record;
    memcpy(&record, records + (size_t)i * sizeof record, sizeof record);
    return record;
}

static inline uint16_t lil_u16_at(const uint8_t *bytes, size_t i) {
    uint16_t value;
    memcpy(&value, bytes + 2 * i, sizeof value);
    return value;
}

static inline uint32_t lil_u32_at(const uint8_t *bytes, size_t i) {
    uint32_t value;
    memcpy(&value, bytes + 4 * i, sizeof value);
    return value;
}

static inline float lil_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Value `i` of an f32 or a bf16 tensor's bytes. */
static inline float lil_f32_at(const uint8_t *bytes, size_t i) {
    float value;
    memcpy(&value, bytes + 4 * i, sizeof value);
    return value;
}

static inline float lil_bf16_at(const uint8_t *bytes, size_t i) {
    return lil_float_from_bits((uint32_t)lil_u16_at(bytes, i) << 16);
}

/* Bytes of an element of a buffer. */
static inline uint32_t lil_element_bytes(uint32_t dtype) {
    return dtype == LIL_F32 || dtype == LIL_U32 ? 4 : 1;
}

/* Bits of a code format (LIL_INT8 and above). */
static inline uint32_t lil_code_bits(uint16_t format) {
    return format == LIL_INT8 ? 8 : format == LIL_INT6 || format == LIL_APOT6 ? 6 : 4;
}

/* Inputs of a block of `tiles` and `blocks`, and its bytes; a block has 16 outputs. */
static inline uint32_t lil_block_cols(uint16_t format) {
    return lil_code_bits(format) == 6 ? 16 : 8;
}

static inline uint32_t lil_block_bytes(uint16_t format) {
    return 2 * lil_block_cols(format) * lil_code_bits(format);
}

/* Code `i` of a row in the `rows` layout. */
static inline uint8_t lil_row_code(const uint8_t *row, uint16_t format, size_t i) {
    const uint32_t bits = lil_code_bits(format);
    const size_t first = bits * i, shift = first % 8;
    uint32_t around = row[first / 8];
    if (shift + bits > 8) {
        around |= (uint32_t)row[first / 8 + 1] << 8;
    }
    return (uint8_t)(around >> shift & ((1u << bits) - 1));
}

#endif
