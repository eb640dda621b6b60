/* lil_open: verifies the whole file. Here: header, sections, buffers, golden examples; the tensors are in
 * lil_check_tensors.c, the ops in lil_check_ops.c and lil_check_flow.c. Nothing is read before its place has been
 * checked, and every size is computed by lil_checked.h. */
#include "lil_check.h"
#include "lil_checked.h"
#include "lil_crc32.h"
#include "lil_format.h"
#include "lil_isa.h"

typedef struct section_table {
    uint32_t count; /* of sections in this version */
    uint64_t end;   /* of the table in the file */
    lil_section at[LIL_NUM_SECTIONS];
} section_table;

/* An empty table for `version`. */
static section_table table_of(uint32_t version) {
    const uint32_t count = version == 1 ? LIL_NUM_SECTIONS - 1 : LIL_NUM_SECTIONS;
    return (section_table){.count = count, .end = sizeof(lil_header) + count * sizeof(lil_section)};
}

static lil_status check_header(lil_model *model, lil_header *header, section_table *sections, lil_cpu *cpu) {
    const size_t size = model->file_bytes;
    if (memcmp(model->file, lil_magic, size < sizeof lil_magic ? size : sizeof lil_magic) != 0) {
        return LIL_FOREIGN;
    }
    *sections = table_of(1);
    if (size < sections->end) {
        return LIL_TRUNCATED;
    }
    memcpy(header, model->file, sizeof *header);
    if (header->version < 1 || header->version > LIL_VERSION) {
        return LIL_BAD_VERSION;
    }
    *sections = table_of(header->version);
    if (header->file_bytes != size) {
        return header->file_bytes > size ? LIL_TRUNCATED : LIL_TRAILING;
    }
    if (size < sections->end) {
        return LIL_TRUNCATED;
    }
    *cpu = lil_detect();
    if (header->checksum != lil_crc32(model->file + 16, size - 16, cpu)) {
        return LIL_BAD_CHECKSUM;
    }
    model->version = header->version;
    model->max_tokens = header->max_tokens;
    const bool fits = header->max_tokens <= (header->version > 1 ? LIL_MAX_TOKENS : 0);
    return header->num_sections == sections->count && fits ? LIL_OK : LIL_BAD_HEADER;
}

/* Places: in order, each at the first multiple of 64 after the one before, the last one to the end of the file. */
static lil_status check_sections(lil_model *model, section_table *sections) {
    uint64_t end = sections->end;
    memcpy(sections->at, model->file + sizeof(lil_header), sections->count * sizeof(lil_section));
    for (uint32_t i = 0; i < sections->count; i++) {
        const lil_section *section = &sections->at[i];
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
    return end == model->file_bytes ? LIL_OK : lil_refuse(model, LIL_BAD_SECTION, sections->count);
}

/* Counts, and the sizes of the sections that hold records. */
static lil_status check_counts(lil_model *model, const lil_section sections[LIL_NUM_SECTIONS]) {
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

/* Bytes of a buffer (of a sequence program: a token); false where dtype, shape, size or offset are not allowed. */
static bool buffer_bytes(const lil_model *model, const lil_buffer *buffer, uint64_t *bytes) {
    const bool is_sequence = model->max_tokens > 0;
    const uint32_t rows = is_sequence && buffer->rows == 0 ? 1 : buffer->rows;
    const uint32_t alignment = is_sequence ? LIL_TOKEN_ALIGNMENT : LIL_ALIGNMENT;
    if (buffer->dtype < LIL_U8 || buffer->dtype > (is_sequence ? LIL_U32 : LIL_F32) || (is_sequence && rows > 1) ||
        !dimensions_fit(rows, buffer->cols)) {
        return false;
    }
    return lil_mul(rows, buffer->cols, bytes) && lil_mul(*bytes, lil_element_bytes(buffer->dtype), bytes) &&
           *bytes <= LIL_MAX_BYTES && (!is_sequence || *bytes % alignment == 0) && buffer->offset % alignment == 0;
}

/* Whether the input and the output are what they must be; true for every other buffer. */
static bool side_fits(const lil_model *model, uint32_t index, const lil_buffer *buffer) {
    bool fits = true;
    if (index == model->input) {
        fits &= buffer->offset == 0 && (model->max_tokens > 0 ? buffer->dtype == LIL_U32 && buffer->rows == 0
                                                              : buffer->dtype == LIL_U8);
    }
    if (index == model->output) {
        fits &= buffer->offset == 0 && buffer->dtype == LIL_F32 && buffer->rows == 1;
    }
    return fits;
}

/* The arena's bytes for `num_tokens` tokens (of an image program: at all); false where that is too large. */
static bool arena_fits(const lil_model *model, uint64_t arena, uint64_t num_tokens) {
    uint64_t tokens, bytes;
    if (model->max_tokens == 0) {
        return arena <= LIL_MAX_BYTES;
    }
    return lil_align(num_tokens, LIL_TOKENS_STEP, &tokens) && lil_mul(arena, tokens, &bytes) && bytes <= LIL_MAX_BYTES;
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
        if (!buffer_bytes(model, &buffer, &bytes) || buffer.reserved != 0 || !lil_add(buffer.offset, bytes, &end) ||
            !side_fits(model, i, &buffer)) {
            return lil_refuse(model, LIL_BAD_BUFFER, i);
        }
        if (i != model->input && i != model->output && end > arena) {
            arena = end;
        }
    }
    if (model->max_tokens == 0 && !lil_align(arena, LIL_ALIGNMENT, &arena)) {
        return LIL_BAD_ARENA;
    }
    if (arena != header->arena_bytes || !arena_fits(model, arena, model->max_tokens)) {
        return LIL_BAD_ARENA;
    }
    const lil_buffer input = lil_buffer_at(model->buffers, model->input);
    model->arena_bytes = (size_t)arena;
    model->input_rows = input.rows;
    model->input_cols = input.cols;
    model->output_cols = lil_buffer_at(model->buffers, model->output).cols;
    return LIL_OK;
}

/* Bytes of the golden inputs; false where they are not in the section. */
static bool golden_input_bytes(const lil_model *model, const lil_section *golden, uint64_t *bytes) {
    if (model->max_tokens == 0) {
        return lil_mul(golden->count, lil_input_bytes(model), bytes);
    }
    uint64_t words = golden->count;
    if (words > golden->bytes / 4) {
        return false;
    }
    for (uint32_t i = 0; i < golden->count; i++) {
        const uint32_t length = lil_u32_at(model->file + golden->offset, i);
        if (length < 1 || length > model->max_tokens || !lil_add(words, length, &words)) {
            return false;
        }
    }
    return lil_mul(words, 4, bytes);
}

static lil_status check_golden(lil_model *model, const lil_section *golden) {
    uint64_t inputs, outputs, start, end;
    if (!golden_input_bytes(model, golden, &inputs) || !lil_mul(golden->count, lil_output_bytes(model), &outputs) ||
        !lil_align(inputs, LIL_FILE_ALIGNMENT, &start) || !lil_add(start, outputs, &end) || end != golden->bytes) {
        return lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_GOLDEN);
    }
    model->golden_inputs = model->file + golden->offset;
    model->golden_input_bytes = (size_t)inputs;
    model->golden_outputs = model->golden_inputs + start;
    if (!lil_all_zero(model->golden_inputs + inputs, start - inputs)) {
        return lil_refuse(model, LIL_BAD_GAP, LIL_SECTION_GOLDEN);
    }
    return LIL_OK;
}

/* Every golden token id is known: the ops, which say which ones are, have been verified. */
static lil_status check_golden_ids(lil_model *model) {
    bool known = true;
    for (size_t i = model->num_golden; i < model->golden_input_bytes / 4; i++) {
        known &= lil_u32_at(model->golden_inputs, i) < model->num_token_ids;
    }
    return known ? LIL_OK : lil_refuse(model, LIL_BAD_SECTION, LIL_SECTION_GOLDEN);
}

/* The words of the vocabulary section before the tokens' bytes: number of merges, merges, ends. */
static lil_status check_vocabulary(lil_model *model, const lil_section *section) {
    const uint8_t *bytes = model->file + section->offset;
    model->vocabulary = bytes;
    model->vocabulary_bytes = (size_t)section->bytes;
    model->vocabulary_tokens = section->count;
    if (section->count == 0) {
        return section->bytes == 0 ? LIL_OK : LIL_BAD_VOCABULARY;
    }
    if (model->max_tokens == 0) {
        return LIL_BAD_VOCABULARY; /* an image program has none */
    }
    const uint64_t merges = section->bytes < 4 ? 0 : lil_u32_at(bytes, 0);
    const uint64_t words = 1 + 2 * merges + section->count; /* < 2^35 */
    if (section->bytes / 4 < words) {
        return LIL_BAD_VOCABULARY;
    }
    bool good = true;
    for (uint64_t i = 0; i < 2 * merges; i++) {
        good &= lil_u32_at(bytes, (size_t)(1 + i)) < section->count;
    }
    uint32_t end = 0;
    for (uint64_t i = 1 + 2 * merges; i < words; i++) {
        good &= lil_u32_at(bytes, (size_t)i) >= end;
        end = lil_u32_at(bytes, (size_t)i);
    }
    return good && 4 * words + end == section->bytes ? LIL_OK : LIL_BAD_VOCABULARY;
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
    lil_status status = check_header(model, &header, &sections, &cpu);
    if (status == LIL_OK) {
        status = check_sections(model, &sections);
    }
    if (status == LIL_OK) {
        status = check_counts(model, sections.at);
    }
    if (status == LIL_OK) {
        status = check_buffers(model, &header);
    }
    if (status == LIL_OK) {
        status = lil_check_tensors(model, sections.at[LIL_SECTION_CONSTANTS - 1].bytes);
    }
    if (status == LIL_OK) {
        status = check_golden(model, &sections.at[LIL_SECTION_GOLDEN - 1]);
    }
    if (status == LIL_OK && model->version > 1) {
        status = check_vocabulary(model, &sections.at[LIL_SECTION_VOCABULARY - 1]);
    }
    if (status == LIL_OK) {
        status = lil_check_ops(model);
    }
    if (status == LIL_OK && model->max_tokens > 0) {
        status = check_golden_ids(model);
    }
    if (status == LIL_OK) {
        status = lil_check_flow(model);
    }
    for (int isa = LIL_SCALAR; isa < LIL_ISA_COUNT && status == LIL_OK; isa++) {
        model->isa = cpu.isa[isa] ? (lil_isa)isa : model->isa; /* the last one that there is, is the best */
    }
    return status;
}
