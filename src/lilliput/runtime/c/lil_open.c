/* lil_open: verifies the whole file. Here: header, sections, buffers, golden examples; the tensors are in
 * lil_check_tensors.c, the ops in lil_check_ops.c and lil_check_flow.c. Nothing is read before its place has been
 * checked, and every size is computed by lil_checked.h. */
#include "lil_check.h"
#include "lil_checked.h"
#include "lil_crc32.h"
#include "lil_format.h"
#include "lil_isa.h"

typedef lil_section section_table[LIL_NUM_SECTIONS];

enum { FIRST_SECTION = sizeof(lil_header) + sizeof(section_table) };

static lil_status check_header(lil_model *model, lil_header *header, lil_cpu *cpu) {
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
    *cpu = lil_detect();
    if (header->checksum != lil_crc32(model->file + 16, size - 16, cpu)) {
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
        if (!lil_all_zero(model->file + end, start - end)) {
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

static lil_status check_golden(lil_model *model, const lil_section *golden) {
    uint64_t inputs, outputs, start, end;
    if (!lil_mul(golden->count, lil_input_bytes(model), &inputs) ||
        !lil_mul(golden->count, lil_output_bytes(model), &outputs) || !lil_align(inputs, LIL_FILE_ALIGNMENT, &start) ||
        !lil_add(start, outputs, &end) || end != golden->bytes) {
        return lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_GOLDEN);
    }
    model->golden_inputs = model->file + golden->offset;
    model->golden_outputs = model->golden_inputs + start;
    if (!lil_all_zero(model->golden_inputs + inputs, start - inputs)) {
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
    lil_cpu cpu;
    lil_status status = check_header(model, &header, &cpu);
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
        status = lil_check_tensors(model, sections[LIL_SECTION_CONSTANTS - 1].bytes);
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
    for (int isa = LIL_SCALAR; isa < LIL_ISA_COUNT && status == LIL_OK; isa++) {
        model->isa = cpu.isa[isa] ? (lil_isa)isa : model->isa; /* the last one that there is, is the best */
    }
    return status;
}
