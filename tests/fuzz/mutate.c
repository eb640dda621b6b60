/* The mutations, and the random numbers that choose them. */
#include "mutate.h"

static uint64_t state = 1;

void fuzz_seed(uint64_t seed) {
    state = (seed ^ 0x9E3779B97F4A7C15u) | 1;
    (void)below(2);
}

uint32_t below(uint32_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 16) * 0x2545F4914F6CDD1Du >> 32) % limit;
}

/* Numbers at which something ends, or near the old one. */
static uint64_t odd_number(uint64_t old) {
    static const uint64_t numbers[] = {0,      1,          2,          3,          7,          8,          15,
                                       16,     17,         31,         32,         63,         64,         65,
                                       127,    128,        255,        256,        65535,      65536,      65537,
                                       1 << 24, (1 << 24) + 1, 0x7F800000, 0x7FC00000, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFF,
                                       0x80000001, 0x3F800000, 1ull << 32, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFC0, UINT64_MAX};
    switch (below(4)) {
    case 0: return old + 1 + below(4);
    case 1: return old - 1 - below(4);
    case 2: return below(80);
    default: return numbers[below(sizeof numbers / sizeof *numbers)];
    }
}

/* One field of a record that is made of fields of `width` bytes. */
static void change_field(void *record, size_t bytes, size_t width) {
    uint8_t *field = (uint8_t *)record + below((uint32_t)(bytes / width)) * width;
    uint64_t value = 0;
    memcpy(&value, field, width);
    value = odd_number(value);
    memcpy(field, &value, width);
}

static void change_record(draft *d) {
    switch (below(5)) {
    case 0:
        if (d->num_buffers > 0) {
            lil_buffer *b = &d->buffers[below(d->num_buffers)];
            below(4) > 0 ? change_field(b, 12, 4) : change_field(b, sizeof *b, 8);
        }
        break;
    case 1:
        if (d->num_tensors > 0) {
            lil_tensor *t = &d->tensors[below(d->num_tensors)];
            below(2) ? change_field(t, 4, 2) : below(4) > 0 ? change_field(&t->rows, 8, 4) : change_field(t, sizeof *t, 8);
        }
        break;
    case 2:
        if (d->num_ops > 0) { /* mostly an attribute that the op has */
            uint32_t *a = d->ops[below(d->num_ops)].a, count = 1;
            for (uint32_t i = 1; i < LIL_NUM_ATTRIBUTES; i++) {
                count = a[i] != 0 ? i + 1 : count;
            }
            change_field(a, (below(8) > 0 ? count : LIL_NUM_ATTRIBUTES) * sizeof *a, sizeof *a);
        }
        break;
    case 3:
        if (d->num_ops > 0 && below(8) == 0) { /* the second input is the first again */
            lil_op *op = &d->ops[below(d->num_ops)];
            op->in[1] = op->in[0];
        } else if (d->num_ops > 0) {
            change_field(&d->ops[below(d->num_ops)], 20, 2);
        }
        break;
    default:
        below(4) > 0 ? change_field(&d->header.input, 16, 4) : change_field(&d->header.arena_bytes, 8, 8);
    }
}

/* A format, layout or shape that tensors have. */
static void change_tensor(draft *d) {
    if (d->num_tensors == 0) {
        return;
    }
    lil_tensor *t = &d->tensors[below(d->num_tensors)];
    switch (below(4)) {
    case 0: t->format = (uint16_t)(LIL_FORMAT_F32 + below(LIL_NUM_FORMATS - 1)); break;
    case 1: t->layout = (uint16_t)below(LIL_NUM_LAYOUTS); break;
    case 2: t->rows = 1 + below(below(2) ? 8 : 40); break;
    default: t->cols = 1 + below(below(2) ? 8 : 40);
    }
}

/* Bytes of one tensor: codes, or floats of all sizes. */
static void change_values(draft *d) {
    if (d->num_tensors == 0) {
        return;
    }
    const uint32_t index = below(d->num_tensors), bytes = (uint32_t)d->value_bytes[index];
    if (bytes == 0) {
        return;
    }
    uint8_t *values = d->values[index];
    const uint32_t how = below(6);
    if (how == 0) {
        memset(values, (int)below(256), bytes);
    } else if (how == 1) {
        const uint32_t start = below(bytes);
        memset(values + start, 0, bytes - start < 64 ? bytes - start : 64);
    } else if (how == 2) {
        for (uint32_t i = 0; i < bytes; i++) {
            values[i] = (uint8_t)below(256);
        }
    } else {
        for (uint32_t count = 1 + below(8); count > 0; count--) {
            values[below(bytes)] = (uint8_t)odd_number(values[below(bytes)]);
        }
    }
}

static lil_op random_op(const draft *d, uint16_t kind) {
    lil_op op = {.kind = kind};
    for (int i = 0; i < LIL_NUM_INPUTS; i++) {
        op.in[i] = (uint16_t)below(d->num_buffers + 2);
    }
    op.in[1] = below(4) == 0 ? op.in[0] : op.in[1]; /* of a product: no scales */
    for (int i = 0; i < LIL_NUM_TENSORS; i++) {
        op.tensor[i] = (uint16_t)(below(3) == 0 ? below(d->num_tensors + 1) : LIL_MAX_RECORDS); /* mostly a new one */
    }
    op.out[0] = op.out[1] = LIL_MAX_RECORDS;
    static const uint32_t floats[] = {0x3F800000, 0x358637BD, 0x00000001, 0x7F7FFFFF, 0x80000000, 0xBF000000, 0x5D5E0B6B};
    op.a[0] = kind == LIL_LAYER_NORM ? floats[below(7)] : 1 + below(6);
    op.a[1] = 1 + below(8);
    op.a[2] = kind == LIL_ATTENTION || kind == LIL_TABLE_ATTENTION ? floats[below(7)] : below(5);
    op.a[3] = below(4);
    op.a[4] = below(3);
    return op;
}

static void insert_op(draft *d, uint32_t at, lil_op op) {
    if (d->num_ops < MAX_DRAFT_RECORDS) {
        memmove(&d->ops[at + 1], &d->ops[at], (d->num_ops - at) * sizeof op);
        d->ops[at] = op;
        d->num_ops++;
    }
}

/* Insert, copy, remove or swap ops. */
static void change_ops(draft *d) {
    const uint32_t count = d->num_ops, at = below(count + 1);
    const uint16_t kind = (uint16_t)(1 + below(LIL_NUM_KINDS - 1));
    switch (below(5)) {
    case 0:
    case 1: {
        const lil_op op = random_op(d, kind);
        insert_op(d, at, op);
        if (kind == LIL_LINEAR || kind == LIL_LINEAR_ADD || kind == LIL_LINEAR_LEVELS) {
            lil_op quantize = random_op(d, LIL_QUANTIZE);
            insert_op(d, at, quantize);
        }
        break;
    }
    case 2:
        if (count > 0) {
            insert_op(d, at, d->ops[below(count)]);
        }
        break;
    case 3:
        if (count > 0) {
            const uint32_t victim = below(count);
            memmove(&d->ops[victim], &d->ops[victim + 1], (count - victim - 1) * sizeof(lil_op));
            d->num_ops--;
        }
        break;
    default:
        if (count > 0) {
            const uint32_t first = below(count), second = below(count);
            const lil_op op = d->ops[first];
            d->ops[first] = d->ops[second];
            d->ops[second] = op;
        }
    }
}

/* Swap two buffers or two tensors, or add or drop one. */
static void change_tables(draft *d) {
    const uint32_t b = d->num_buffers, t = d->num_tensors;
    switch (below(6)) {
    case 0:
        if (b > 0) {
            const uint32_t first = below(b), second = below(b);
            const lil_buffer buffer = d->buffers[first];
            d->buffers[first] = d->buffers[second];
            d->buffers[second] = buffer;
        }
        break;
    case 1:
        if (t > 0) {
            const uint32_t first = below(t), second = below(t);
            const lil_tensor tensor = d->tensors[first];
            d->tensors[first] = d->tensors[second];
            d->tensors[second] = tensor;
        }
        break;
    case 2: d->num_buffers -= b > 0; break;
    case 3: d->num_tensors -= t > 0; break;
    case 4:
        if (b > 0 && b < MAX_DRAFT_RECORDS) {
            d->buffers[d->num_buffers++] = d->buffers[below(b)];
        }
        break;
    default: d->num_golden = below(3);
    }
}

/* The shape of the image, or the longest sequence; seldom one kind of program for the other. */
static void change_input(draft *d) {
    if (below(50) == 0) {
        d->header.max_tokens = d->header.max_tokens > 0 ? 0 : 1 + below(40);
    } else if (d->header.max_tokens > 0) {
        d->header.max_tokens = 1 + below(40);
    } else if (d->header.input < d->num_buffers) {
        lil_buffer *input = &d->buffers[d->header.input];
        below(2) ? (input->rows = 1 + below(40)) : (input->cols = 1 + below(20));
    }
}

/* A word of the vocabulary, its bytes, or how many tokens it has. */
static void change_vocabulary(draft *d) {
    if (d->vocabulary_bytes >= 4 && below(2)) {
        change_field(d->vocabulary, d->vocabulary_bytes, 4);
    } else if (below(2)) {
        d->vocabulary_bytes = below(MAX_VOCABULARY_BYTES + 1);
    } else {
        d->num_words = (uint32_t)odd_number(d->num_words);
    }
}

static void change_draft(draft *d) {
    switch (below(8)) {
    case 0: change_record(d); break;
    case 1: change_tensor(d); break;
    case 2:
    case 3: change_values(d); break;
    case 4:
    case 5: change_ops(d); break;
    case 6: change_tables(d); break;
    default: change_input(d);
    }
}

/* The offsets that a writer gives to tensors of these sizes. */
static void place_tensors(draft *d) {
    uint64_t end = 0;
    for (uint32_t i = 0; i < d->num_tensors; i++) {
        d->tensors[i].offset = (end + 63) / 64 * 64;
        end = d->tensors[i].offset + d->value_bytes[i];
    }
}

size_t mutate(uint8_t *file, size_t size, size_t capacity, uint64_t seed,
              size_t (*change_bytes)(uint8_t *file, size_t size, size_t capacity)) {
    static draft d;
    fuzz_seed(seed);
    if (below(8) == 0 || !take_apart(&d, file, size)) {
        size = change_bytes(file, size, capacity);
        if (below(10) > 0 && size >= sizeof(lil_header)) {
            memcpy(file, lil_magic, sizeof lil_magic);
            seal(file, size);
        }
        return size;
    }
    if (below(200) == 0) {
        d.num_ops = 0; /* a new program */
        for (uint32_t count = 2 + below(8); count > 0; count--) {
            change_ops(&d);
        }
    }
    for (uint32_t count = 1 + below(4); count > 0; count--) {
        change_draft(&d);
    }
    if (below(5) > 0) {
        make_valid(&d);
    }
    place_tensors(&d);
    for (uint32_t count = below(3) == 0 ? 1 + below(2) : 0; count > 0; count--) {
        if (d.header.version > 1 && below(8) == 0) { /* after the repair: what is wrong now stays wrong */
            change_vocabulary(&d);
        } else {
            change_record(&d);
        }
    }
    static uint8_t built[1 << 16];
    const size_t whole = put_together(&d, built, sizeof built);
    if (whole == 0 || whole > capacity) {
        return size;
    }
    memcpy(file, built, whole);
    if (below(12) == 0) { /* a lie in the section table */
        change_field(file + sizeof(lil_header), LIL_NUM_SECTIONS * sizeof(lil_section), below(2) ? 4 : 8);
        seal(file, whole);
    }
    return whole;
}

size_t change_some_bytes(uint8_t *file, size_t size, size_t capacity) {
    for (uint32_t count = 1 + below(4); count > 0; count--) {
        const uint32_t at = size > 0 ? below((uint32_t)size) : 0, other = size > 0 ? below((uint32_t)size) : 0;
        const size_t longest = size - (at > other ? at : other), bytes = longest < 64 ? longest : 64;
        uint8_t block[64];
        switch (size > 0 ? below(8) : 6) {
        case 0: size = at; break;
        case 1:
            for (uint32_t more = 1 + below(100); more > 0 && size < capacity; more--) {
                file[size++] = (uint8_t)(below(2) ? below(256) : 0);
            }
            break;
        case 2:
            memcpy(block, file + at, bytes);
            memmove(file + at, file + other, bytes);
            memcpy(file + other, block, bytes);
            break;
        case 3: file[at] = (uint8_t)odd_number(file[at]); break;
        case 4: file[at] = (uint8_t)below(256); break;
        case 5: {
            const uint32_t value = (uint32_t)odd_number(file[at]);
            memcpy(file + at / 4 * 4, &value, size - at / 4 * 4 < 4 ? 1 : 4);
            break;
        }
        default:
            if (size > 0) {
                file[at] ^= (uint8_t)(1u << below(8));
            }
        }
    }
    return size;
}
