/* A file taken apart and put together. */
#include "lil_crc32.h"
#include "mutate.h"

/* Sections of a version, and where their table ends. */
static uint32_t num_sections(uint32_t version) {
    return version == 1 ? LIL_NUM_SECTIONS - 1 : LIL_NUM_SECTIONS;
}

static size_t table_end(uint32_t version) {
    return sizeof(lil_header) + num_sections(version) * sizeof(lil_section);
}

static size_t index_bytes(size_t block_rows, size_t stored) {
    return align(4 * (block_rows + 1) + 2 * stored, LIL_FILE_ALIGNMENT);
}

size_t tensor_bytes_of(const lil_tensor *t, const uint8_t *values, size_t available) {
    if (t->format < LIL_FORMAT_F32 || t->format >= LIL_NUM_FORMATS || t->layout >= LIL_NUM_LAYOUTS || t->rows < 1 ||
        t->cols < 1 || t->rows > MAX_TENSOR_BYTES || t->cols > MAX_TENSOR_BYTES) {
        return 0;
    }
    size_t bytes;
    if (t->format <= LIL_BF16) {
        bytes = (size_t)t->rows * t->cols * (t->format == LIL_FORMAT_F32 ? 4 : 2);
    } else if (t->layout == LIL_ROWS) {
        bytes = t->rows * (((size_t)t->cols * lil_code_bits(t->format) + 7) / 8);
    } else {
        const grid g = grid_of(t);
        bytes = g.rows * g.cols * lil_block_bytes(t->format);
        if (t->layout == LIL_BLOCKS && values == NULL) {
            bytes += index_bytes(g.rows, g.rows * g.cols); /* the most there can be */
        } else if (t->layout == LIL_BLOCKS) {
            const size_t stored = available < 4 * (g.rows + 1) ? SIZE_MAX : lil_u32_at(values, g.rows);
            bytes = stored > MAX_TENSOR_BYTES ? 0 : index_bytes(g.rows, stored) + stored * lil_block_bytes(t->format);
        }
    }
    return bytes <= MAX_TENSOR_BYTES ? bytes : 0;
}

void seal(uint8_t *file, size_t size) {
    const uint64_t bytes = size;
    memcpy(file + 16, &bytes, sizeof bytes);
    const uint32_t checksum = lil_crc32(file + 16, size - 16, &(lil_cpu){.clmul = false});
    memcpy(file + 12, &checksum, sizeof checksum);
}

static bool take_records(const uint8_t *file, const lil_section *section, size_t record_bytes, void *records,
                         uint32_t *count) {
    *count = section->count;
    if (section->count > MAX_DRAFT_RECORDS || section->bytes != section->count * record_bytes) {
        return false;
    }
    memcpy(records, file + section->offset, section->bytes);
    return true;
}

bool take_apart(draft *d, const uint8_t *file, size_t size) {
    lil_section sections[LIL_NUM_SECTIONS];
    if (size < sizeof d->header) {
        return false;
    }
    memcpy(&d->header, file, sizeof d->header);
    const uint32_t count = num_sections(d->header.version);
    if (size < table_end(d->header.version)) {
        return false;
    }
    memcpy(sections, file + sizeof d->header, count * sizeof *sections);
    for (size_t i = 0; i < count; i++) {
        if (sections[i].offset > size || sections[i].bytes > size - sections[i].offset) {
            return false;
        }
    }
    if (!take_records(file, &sections[0], sizeof(lil_buffer), d->buffers, &d->num_buffers) ||
        !take_records(file, &sections[1], sizeof(lil_tensor), d->tensors, &d->num_tensors) ||
        !take_records(file, &sections[2], sizeof(lil_op), d->ops, &d->num_ops)) {
        return false;
    }
    for (uint32_t i = 0; i < d->num_tensors; i++) {
        const size_t start = d->tensors[i].offset < sections[3].bytes ? (size_t)d->tensors[i].offset : 0;
        const size_t available = (size_t)sections[3].bytes - start;
        const size_t bytes = tensor_bytes_of(&d->tensors[i], file + sections[3].offset + start, available);
        const bool inside = bytes <= available;
        d->value_bytes[i] = inside ? bytes : 0;
        memcpy(d->values[i], file + sections[3].offset + (inside ? start : 0), d->value_bytes[i]);
    }
    d->metadata_bytes = sections[4].bytes < MAX_METADATA_BYTES ? (size_t)sections[4].bytes : MAX_METADATA_BYTES;
    memcpy(d->metadata, file + sections[4].offset, d->metadata_bytes);
    d->num_golden = sections[5].count;
    d->num_words = 0;
    d->vocabulary_bytes = 0;
    if (count > 6 && sections[6].bytes <= MAX_VOCABULARY_BYTES) {
        d->num_words = sections[6].count;
        d->vocabulary_bytes = (size_t)sections[6].bytes;
        memcpy(d->vocabulary, file + sections[6].offset, d->vocabulary_bytes);
    }
    return true;
}

/* Append a section at the next multiple of 64; its start. SIZE_MAX in `*size` where it does not fit. */
static size_t append(uint8_t *file, size_t *size, size_t capacity, uint32_t kind, uint32_t count, const void *content,
                     size_t bytes) {
    const size_t start = align(*size, LIL_FILE_ALIGNMENT);
    if (*size == SIZE_MAX || start > capacity || bytes > capacity - start) {
        *size = SIZE_MAX;
        return 0;
    }
    const lil_section section = {kind, count, start, bytes};
    memset(file + *size, 0, start - *size);
    if (content != NULL) {
        memcpy(file + start, content, bytes);
    }
    memcpy(file + sizeof(lil_header) + (kind - 1) * sizeof section, &section, sizeof section);
    *size = start + bytes;
    return start;
}

/* Bytes of the golden section, or 0 where the buffers say too many. The examples are all zero, a
 * sequence is one token. */
static size_t golden_bytes(const draft *d) {
    if (d->header.input >= d->num_buffers || d->header.output >= d->num_buffers || d->num_golden == 0) {
        return 0;
    }
    const lil_buffer *in = &d->buffers[d->header.input], *out = &d->buffers[d->header.output];
    const uint64_t inputs = d->header.max_tokens > 0 ? 8 : (uint64_t)in->rows * in->cols;
    const uint64_t outputs = (uint64_t)out->rows * out->cols * 4;
    if (inputs > MAX_GOLDEN_BYTES || outputs > MAX_GOLDEN_BYTES || d->num_golden > 4) {
        return 0;
    }
    return align(d->num_golden * inputs, LIL_FILE_ALIGNMENT) + d->num_golden * outputs;
}

size_t put_together(const draft *d, uint8_t *file, size_t capacity) {
    size_t size = table_end(d->header.version), constant_bytes = 0, golden = golden_bytes(d);
    if (capacity < size) {
        return 0;
    }
    append(file, &size, capacity, 1, d->num_buffers, d->buffers, d->num_buffers * sizeof(lil_buffer));
    append(file, &size, capacity, 2, d->num_tensors, d->tensors, d->num_tensors * sizeof(lil_tensor));
    append(file, &size, capacity, 3, d->num_ops, d->ops, d->num_ops * sizeof(lil_op));
    for (uint32_t i = 0; i < d->num_tensors; i++) {
        constant_bytes = align(constant_bytes, LIL_FILE_ALIGNMENT) + d->value_bytes[i];
    }
    const size_t constants = append(file, &size, capacity, 4, d->num_tensors, NULL, constant_bytes);
    append(file, &size, capacity, 5, 1, d->metadata, d->metadata_bytes);
    const size_t examples = append(file, &size, capacity, 6, golden > 0 ? d->num_golden : 0, NULL, golden);
    if (num_sections(d->header.version) > 6) {
        append(file, &size, capacity, 7, d->num_words, d->vocabulary, d->vocabulary_bytes);
    }
    if (size == SIZE_MAX) {
        return 0;
    }
    memset(file + constants, 0, constant_bytes);
    memset(file + examples, 0, golden);
    for (uint32_t i = 0; i < d->num_golden && golden > 0 && d->header.max_tokens > 0; i++) {
        file[examples + 4 * i] = 1; /* a length */
    }
    size_t end = 0;
    for (uint32_t i = 0; i < d->num_tensors; i++) {
        end = align(end, LIL_FILE_ALIGNMENT);
        memcpy(file + constants + end, d->values[i], d->value_bytes[i]);
        end += d->value_bytes[i];
    }
    memcpy(file, &d->header, sizeof d->header);
    seal(file, size);
    return size;
}
