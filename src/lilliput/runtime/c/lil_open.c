/* lil_open: verifies the whole file. Here: header, sections, buffers, tensors, constants, golden examples; the ops
 * are in lil_check_ops.c and lil_check_flow.c. Nothing is read before its place has been checked, and every size is
 * computed by lil_checked.h. */
#include "lil_check.h"
#include "lil_checked.h"
#include "lil_crc32.h"
#include "lil_format.h"

typedef lil_section section_table[LIL_NUM_SECTIONS];

enum { FIRST_SECTION = sizeof(lil_header) + sizeof(section_table) };

static bool all_zero(const uint8_t *bytes, uint64_t count) {
    uint8_t any = 0;
    for (uint64_t i = 0; i < count; i++) {
        any |= bytes[i];
    }
    return any == 0;
}

static lil_status check_header(lil_model *model, lil_header *header) {
    const size_t size = model->file_bytes;
    if (memcmp(model->file, lil_magic, size < sizeof lil_magic ? size : sizeof lil_magic) != 0) {
        return LIL_FOREIGN;
    }
    if (size < FIRST_SECTION) {
        return LIL_TRUNCATED;
    }
    memcpy(header, model->file, sizeof *header);
    if (header->version != LIL_VERSION) {
        return LIL_BAD_VERSION;
    }
    if (header->file_bytes != size) {
        return header->file_bytes > size ? LIL_TRUNCATED : LIL_TRAILING;
    }
    if (header->checksum != lil_crc32(model->file + 16, size - 16)) {
        return LIL_BAD_CHECKSUM;
    }
    return header->num_sections == LIL_NUM_SECTIONS && header->reserved == 0 ? LIL_OK : LIL_BAD_HEADER;
}

/* Places: in order, each at the first multiple of 64 after the one before, the last one to the end of the file. */
static lil_status check_sections(lil_model *model, section_table sections) {
    uint64_t end = FIRST_SECTION;
    memcpy(sections, model->file + sizeof(lil_header), sizeof(section_table));
    for (uint32_t i = 0; i < LIL_NUM_SECTIONS; i++) {
        const lil_section *section = &sections[i];
        const uint32_t kind = i + 1;
        uint64_t start;
        if (section->kind != kind || !lil_align(end, LIL_FILE_ALIGNMENT, &start) || section->offset != start ||
            !lil_inside(start, section->bytes, model->file_bytes)) {
            return lil_refuse(model, LIL_BAD_SECTION, kind);
        }
        if (!all_zero(model->file + end, start - end)) {
            return lil_refuse(model, LIL_BAD_GAP, kind);
        }
        end = start + section->bytes; /* inside the file: no overflow */
    }
    return end == model->file_bytes ? LIL_OK : lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_GOLDEN);
}

/* Counts, and the sizes of the sections that hold records. */
static lil_status check_counts(lil_model *model, const section_table sections) {
    static const uint64_t record_bytes[3] = {sizeof(lil_buffer), sizeof(lil_tensor), sizeof(lil_op)};
    for (uint32_t i = 0; i < 3; i++) {
        const uint32_t count = sections[i].count;
        if (count > LIL_MAX_RECORDS || sections[i].bytes != count * record_bytes[i]) {
            return lil_refuse(model, LIL_BAD_SECTION, i + 1);
        }
    }
    if (sections[LIL_SECTION_CONSTANTS - 1].count != sections[LIL_SECTION_TENSORS - 1].count) {
        return lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_CONSTANTS);
    }
    if (sections[LIL_SECTION_METADATA - 1].count != 1) {
        return lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_METADATA);
    }
    model->num_buffers = sections[LIL_SECTION_BUFFERS - 1].count;
    model->num_tensors = sections[LIL_SECTION_TENSORS - 1].count;
    model->num_ops = sections[LIL_SECTION_OPS - 1].count;
    model->num_golden = sections[LIL_SECTION_GOLDEN - 1].count;
    model->buffers = model->file + sections[LIL_SECTION_BUFFERS - 1].offset;
    model->tensors = model->file + sections[LIL_SECTION_TENSORS - 1].offset;
    model->ops = model->file + sections[LIL_SECTION_OPS - 1].offset;
    model->constants = model->file + sections[LIL_SECTION_CONSTANTS - 1].offset;
    model->metadata = model->file + sections[LIL_SECTION_METADATA - 1].offset;
    model->metadata_bytes = (size_t)sections[LIL_SECTION_METADATA - 1].bytes;
    return LIL_OK;
}

static bool dimensions_fit(uint32_t rows, uint32_t cols) {
    return rows >= 1 && rows <= LIL_MAX_DIMENSION && cols >= 1 && cols <= LIL_MAX_DIMENSION;
}

/* Bytes of a buffer; false where dtype, shape or size are not allowed. */
static bool buffer_bytes(const lil_buffer *buffer, uint64_t *bytes) {
    if (buffer->dtype < LIL_U8 || buffer->dtype > LIL_F32 || !dimensions_fit(buffer->rows, buffer->cols)) {
        return false;
    }
    return lil_mul(buffer->rows, buffer->cols, bytes) && lil_mul(*bytes, buffer->dtype == LIL_F32 ? 4 : 1, bytes) &&
           *bytes <= LIL_MAX_BYTES;
}

static lil_status check_buffers(lil_model *model, const lil_header *header) {
    if (header->input >= model->num_buffers || header->output >= model->num_buffers) {
        return LIL_BAD_HEADER;
    }
    model->input = header->input;
    model->output = header->output;
    uint64_t arena = 0;
    for (uint32_t i = 0; i < model->num_buffers; i++) {
        const lil_buffer buffer = lil_buffer_at(model->buffers, i);
        uint64_t bytes, end;
        if (!buffer_bytes(&buffer, &bytes) || buffer.reserved != 0 || buffer.offset % LIL_ALIGNMENT != 0 ||
            !lil_add(buffer.offset, bytes, &end)) {
            return lil_refuse(model, LIL_BAD_BUFFER, i);
        }
        if ((i == model->input && (buffer.dtype != LIL_U8 || buffer.offset != 0)) ||
            (i == model->output && (buffer.dtype != LIL_F32 || buffer.rows != 1 || buffer.offset != 0))) {
            return lil_refuse(model, LIL_BAD_BUFFER, i);
        }
        if (i != model->input && i != model->output && end > arena) {
            arena = end;
        }
    }
    if (!lil_align(arena, LIL_ALIGNMENT, &arena) || arena != header->arena_bytes || arena > LIL_MAX_BYTES) {
        return LIL_BAD_ARENA;
    }
    const lil_buffer input = lil_buffer_at(model->buffers, model->input);
    model->arena_bytes = (size_t)arena;
    model->input_rows = input.rows;
    model->input_cols = input.cols;
    model->output_cols = lil_buffer_at(model->buffers, model->output).cols;
    return LIL_OK;
}

/* Bytes of a tensor; false where format, layout, shape or size are not allowed. */
static bool tensor_bytes(const lil_tensor *tensor, uint64_t *bytes) {
    if (tensor->format < LIL_FORMAT_F32 || tensor->format > LIL_POT4 || tensor->layout > LIL_TILES ||
        !dimensions_fit(tensor->rows, tensor->cols)) {
        return false;
    }
    uint64_t rows = tensor->rows, cols = tensor->cols; /* at most 2^24: their sums and byte counts below fit 64 bits */
    if (tensor->format <= LIL_BF16) {
        if (tensor->layout != LIL_ROWS || !lil_mul(cols, tensor->format == LIL_FORMAT_F32 ? 4 : 2, &cols)) {
            return false;
        }
    } else if (tensor->layout == LIL_TILES) {
        if (!lil_align(rows, 16, &rows) || !lil_align(cols, 8, &cols)) {
            return false;
        }
    }
    if (tensor->format >= LIL_INT4) {
        if (!lil_add(cols, 1, &cols)) {
            return false;
        }
        cols /= 2;
    }
    return lil_mul(rows, cols, bytes) && *bytes <= LIL_MAX_BYTES;
}

/* Whether every value of an f32 or bf16 tensor is finite: no exponent is all ones. */
static bool all_finite(const uint8_t *bytes, const lil_tensor *tensor) {
    const size_t count = (size_t)tensor->rows * tensor->cols, width = tensor->format == LIL_FORMAT_F32 ? 4 : 2;
    bool finite = true;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *top = bytes + width * i + width - 2; /* the upper 16 bits hold sign and exponent */
        finite &= ((top[1] & 0x7F) != 0x7F) | ((top[0] & 0x80) == 0);
    }
    return finite;
}

/* Code at (row, col) of a `tiles` tensor, padding included. */
static uint8_t tiled_code(const uint8_t *bytes, const lil_tensor *tensor, size_t row, size_t col) {
    const size_t tile = row / 16 * ((tensor->cols + 7u) / 8 * 2) + col / 4, within = 4 * (row % 16) + col % 4;
    if (tensor->format == LIL_INT8) {
        return bytes[64 * tile + within];
    }
    const uint8_t pair = bytes[64 * (tile / 2) + within];
    return tile % 2 == 0 ? pair & 15 : pair >> 4;
}

/* Whether all the codes that pad rows and columns are 0. */
static bool padding_is_zero(const uint8_t *bytes, const lil_tensor *tensor) {
    const size_t rows = tensor->rows, cols = tensor->cols;
    uint8_t any = 0;
    if (tensor->layout == LIL_ROWS) {
        for (size_t r = 0; tensor->format != LIL_INT8 && cols % 2 != 0 && r < rows; r++) {
            any |= bytes[(r + 1) * ((cols + 1) / 2) - 1] >> 4;
        }
        return any == 0;
    }
    const size_t padded_rows = (rows + 15) / 16 * 16, padded_cols = (cols + 7) / 8 * 8;
    for (size_t r = 0; r < padded_rows; r++) {
        for (size_t c = r < rows ? cols : 0; c < padded_cols; c++) {
            any |= tiled_code(bytes, tensor, r, c);
        }
    }
    return any == 0;
}

/* Whether every code has a level: the lowest in two's complement, and `pot4`'s 8, have none. */
static bool codes_have_levels(const uint8_t *bytes, uint64_t count, uint16_t format) {
    bool good = true;
    for (uint64_t i = 0; i < count; i++) {
        good &= format == LIL_INT8 ? bytes[i] != 0x80 : ((bytes[i] & 0x0F) != 0x08) & ((bytes[i] & 0xF0) != 0x80);
    }
    return good;
}

/* Tensors and their constants: in order, each at the first multiple of 64 after the one before, the last one to the
 * end. */
static lil_status check_tensors(lil_model *model, const lil_section *constants) {
    uint64_t end = 0;
    for (uint32_t i = 0; i < model->num_tensors; i++) {
        const lil_tensor tensor = lil_tensor_at(model->tensors, i);
        uint64_t bytes, start;
        if (!tensor_bytes(&tensor, &bytes) || tensor.reserved != 0 || !lil_align(end, LIL_FILE_ALIGNMENT, &start) ||
            tensor.offset != start || !lil_inside(start, bytes, constants->bytes)) {
            return lil_refuse(model, LIL_BAD_TENSOR, i);
        }
        const uint8_t *values = model->constants + start;
        if (!all_zero(model->constants + end, start - end)) {
            return lil_refuse(model, LIL_BAD_GAP, LIL_SECTION_CONSTANTS);
        }
        if (tensor.format <= LIL_BF16) {
            if (!all_finite(values, &tensor)) {
                return lil_refuse(model, LIL_BAD_CONSTANT, i);
            }
        } else if (!codes_have_levels(values, bytes, tensor.format) || !padding_is_zero(values, &tensor)) {
            return lil_refuse(model, LIL_BAD_CODE, i);
        }
        end = start + bytes; /* inside the section: no overflow */
    }
    return end == constants->bytes ? LIL_OK : lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_CONSTANTS);
}

static lil_status check_golden(lil_model *model, const lil_section *golden) {
    uint64_t inputs, outputs, start, end;
    if (!lil_mul(golden->count, lil_input_bytes(model), &inputs) ||
        !lil_mul(golden->count, lil_output_bytes(model), &outputs) || !lil_align(inputs, LIL_FILE_ALIGNMENT, &start) ||
        !lil_add(start, outputs, &end) || end != golden->bytes) {
        return lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_GOLDEN);
    }
    model->golden_inputs = model->file + golden->offset;
    model->golden_outputs = model->golden_inputs + start;
    if (!all_zero(model->golden_inputs + inputs, start - inputs)) {
        return lil_refuse(model, LIL_BAD_GAP, LIL_SECTION_GOLDEN);
    }
    return LIL_OK;
}

lil_status lil_open(lil_model *model, const void *file, size_t file_bytes) {
    if (model == NULL) {
        return LIL_NULL_ARGUMENT;
    }
    *model = (lil_model){.file = file, .file_bytes = file_bytes};
    if (file == NULL) {
        return LIL_NULL_ARGUMENT;
    }
    lil_header header;
    section_table sections;
    lil_status status = check_header(model, &header);
    if (status == LIL_OK) {
        status = check_sections(model, sections);
    }
    if (status == LIL_OK) {
        status = check_counts(model, sections);
    }
    if (status == LIL_OK) {
        status = check_buffers(model, &header);
    }
    if (status == LIL_OK) {
        status = check_tensors(model, &sections[LIL_SECTION_CONSTANTS - 1]);
    }
    if (status == LIL_OK) {
        status = check_golden(model, &sections[LIL_SECTION_GOLDEN - 1]);
    }
    if (status == LIL_OK) {
        status = lil_check_ops(model);
    }
    if (status == LIL_OK) {
        status = lil_check_flow(model);
    }
    for (int isa = LIL_ISA_COUNT - 1; isa > LIL_SCALAR && model->isa == LIL_SCALAR; isa--) {
        (void)lil_use_isa(model, (lil_isa)isa); /* the last one that there is, is the best */
    }
    return status;
}
