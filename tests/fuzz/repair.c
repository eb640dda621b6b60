/* The repair that makes a draft a valid program. Ops that cannot be made to fit are left out. */
#include "lil.h"
#include "lil_kernels.h"
#include "mutate.h"

enum { MAX_ELEMENTS = 4096, NO_BUFFER = 65535, NO_TENSOR = 65535, ANY_ROWS = 65535 };

/* What make_valid has built so far: ops and buffers of the new program, and the new number of each old buffer. */
typedef struct build {
    draft *d;
    lil_buffer buffers[MAX_DRAFT_RECORDS];
    uint32_t writers[MAX_DRAFT_RECORDS]; /* the op that writes each buffer */
    lil_op ops[MAX_DRAFT_RECORDS];
    uint32_t num_buffers, num_ops;
    uint16_t renamed[65536];
    bool claimed[MAX_DRAFT_RECORDS]; /* the tensors that an op has */
    uint32_t max_tokens;             /* 0: an image program; in others a buffer with a row a token has 0 rows */
} build;

/* Kinds that the one or the other program may not hold, and those that look at an example's rows together. */
static bool is_allowed(const build *b, uint16_t kind) {
    const bool only_images = kind == LIL_NORMALIZE || kind == LIL_UNFOLD || kind == LIL_PREPEND_TOKEN;
    const bool only_sequences = kind >= LIL_EMBED_TOKENS && kind <= LIL_CONCAT;
    return b->max_tokens > 0 ? !only_images : !only_sequences;
}

static bool is_whole(uint16_t kind) {
    return kind == LIL_ATTENTION || kind == LIL_TABLE_ATTENTION || kind == LIL_NEIGHBORS ||
           (kind >= LIL_ADD_POSITIONS && kind <= LIL_MEAN_ROWS);
}

static bool is_product(uint16_t kind) {
    return kind == LIL_LINEAR || kind == LIL_LINEAR_ADD || kind == LIL_LINEAR_LEVELS;
}

/* A buffer of `dtype` with `rows` (or ANY_ROWS), whose cols are a multiple of `multiple`. */
static bool is_like(const lil_buffer *buffer, uint32_t dtype, uint32_t rows, uint32_t multiple) {
    return buffer->dtype == dtype && (rows == ANY_ROWS || buffer->rows == rows) && buffer->cols % multiple == 0;
}

/* The new buffer that `old` is, where it is such a one; else the last that is; NO_BUFFER where there is none. */
static uint16_t find(const build *b, uint16_t old, uint32_t dtype, uint32_t rows, uint32_t multiple) {
    const uint16_t index = b->renamed[old];
    if (index < b->num_buffers && is_like(&b->buffers[index], dtype, rows, multiple)) {
        return index;
    }
    for (uint32_t i = b->num_buffers; i-- > 0;) {
        if (is_like(&b->buffers[i], dtype, rows, multiple)) {
            return (uint16_t)i;
        }
    }
    return NO_BUFFER;
}

/* Whether a tensor is already what a slot wants. */
static bool suits(const lil_tensor *t, const lil_tensor *wanted, bool is_codes) {
    const bool format = is_codes ? t->format >= LIL_INT8 && t->format < LIL_NUM_FORMATS
                                 : t->format == wanted->format;
    return format && t->layout == wanted->layout && t->rows == wanted->rows && t->cols == wanted->cols;
}

/* Give slot `slot` of `op` a tensor like `wanted`, of any code format where it `is_codes`: the one that it names, made
 * to suit; or a new one where that is another op's too and does not suit. False where there is no room. */
static bool want_tensor(build *b, lil_op *op, int slot, bool is_codes, lil_tensor wanted, bool is_scale) {
    draft *d = b->d;
    uint32_t index = op->tensor[slot];
    if (index >= d->num_tensors || (b->claimed[index] && !suits(&d->tensors[index], &wanted, is_codes))) {
        if (d->num_tensors >= MAX_DRAFT_RECORDS) {
            return false;
        }
        index = d->num_tensors++;
        d->tensors[index] = (lil_tensor){.format = (uint16_t)(LIL_INT8 + below(LIL_NUM_FORMATS - LIL_INT8))};
        d->value_bytes[index] = 0;
    }
    lil_tensor *t = &d->tensors[index];
    if (is_codes && t->format >= LIL_INT8 && t->format < LIL_NUM_FORMATS) {
        wanted.format = t->format;
    }
    if (tensor_bytes_of(&wanted, NULL, 0) == 0) {
        return false;
    }
    *t = wanted;
    op->tensor[slot] = (uint16_t)index;
    b->claimed[index] = true;
    make_values_valid(d, index, is_scale);
    return true;
}

static bool want_codes(build *b, lil_op *op, uint16_t layout, uint32_t rows, uint32_t cols) {
    return want_tensor(b, op, 0, true, (lil_tensor){LIL_POT4, layout, rows, cols, 0, 0}, false);
}

static bool want_vector(build *b, lil_op *op, int slot, uint16_t format, uint32_t cols, bool is_scale) {
    return want_tensor(b, op, slot, false, (lil_tensor){format, LIL_ROWS, 1, cols, 0, 0}, is_scale);
}

static bool fit_unfold(const lil_buffer *x, lil_op *op, lil_buffer *y) {
    uint32_t *a = op->a;
    if (a[0] == 0 || x->rows % a[0] != 0) {
        a[0] = 1;
        for (uint32_t side = 2; side * side <= x->rows; side++) {
            a[0] = x->rows % side == 0 ? side : a[0];
        }
    }
    a[1] = x->rows / a[0];
    a[2] = a[2] % 5 + 1;
    a[4] = a[4] % a[2];
    const uint32_t side = (a[0] < a[1] ? a[0] : a[1]) + 2 * a[4];
    a[2] = a[2] > side ? side : a[2];
    a[4] = a[4] < a[2] ? a[4] : a[2] - 1;
    if (a[2] > a[0] + 2 * a[4] || a[2] > a[1] + 2 * a[4]) {
        a[4] = 0, a[2] = 1;
    }
    a[3] = a[3] == 0 ? 1 : a[3];
    const uint32_t down = (a[0] + 2 * a[4] - a[2]) / a[3] + 1, across = (a[1] + 2 * a[4] - a[2]) / a[3] + 1;
    *y = (lil_buffer){LIL_F32, down * across, a[2] * a[2] * x->cols, 0, 0};
    return true;
}

/* Of levels, as the attribute says it: 0, 4 or 6. */
static uint32_t level_bits(uint32_t given) {
    static const uint8_t some[] = {0, 4, 6};
    return given == 4 || given == 6 ? given : some[given % 3];
}

static bool fit_product(build *b, const lil_buffer *x, lil_op *op, lil_buffer *y) {
    const bool adds = op->kind == LIL_LINEAR_ADD;
    const uint32_t old = op->tensor[0] < b->d->num_tensors ? op->tensor[0] : 0;
    const lil_tensor *codes = &b->d->tensors[old];
    const uint32_t cols = x->cols - (codes->cols % 8 > 0 ? 8 - codes->cols % 8 : 0);
    const uint32_t rows = adds ? b->buffers[op->in[2]].cols : codes->rows % 80 + (codes->rows % 80 == 0);
    const uint16_t layout = codes->layout == LIL_ROWS ? (uint16_t)(LIL_TILES + below(2)) : codes->layout;
    const bool to_levels = op->kind == LIL_LINEAR_LEVELS;
    if (adds && b->buffers[op->in[2]].rows != x->rows) {
        return false;
    }
    op->a[0] = adds ? 0 : op->a[0] % (to_levels ? FINISH_GELU_TANH + 1 : FINISH_ADD);
    *y = (lil_buffer){LIL_F32, x->rows, rows, 0, 0};
    if (to_levels) {
        op->a[1] = level_bits(op->a[1]);
        *y = (lil_buffer){LIL_I8, x->rows, (uint32_t)align(rows, 8), 0, 0};
    }
    return want_codes(b, op, layout, rows, cols) && want_vector(b, op, 1, LIL_BF16, rows, true) &&
           want_vector(b, op, 2, LIL_BF16, rows, false) &&
           (!to_levels || want_vector(b, op, 3, LIL_BF16, rows, false));
}

/* The second input of a product: its levels again where the op names them twice, where nothing else fits, or now and
 * then; else the scales that `quantize` has made with the levels, or for levels of a product any that fit. */
static uint16_t scales_of(const build *b, const lil_op *op, bool named_again) {
    const lil_op *writer = &b->ops[b->writers[op->in[0]]];
    if (named_again || below(16) == 0) {
        return op->in[0];
    }
    if (writer->kind == LIL_QUANTIZE) {
        return writer->out[1];
    }
    for (uint32_t i = b->num_buffers; i-- > 0 && below(2);) {
        if (is_like(&b->buffers[i], LIL_F32, b->buffers[op->in[0]].rows, 1) && b->buffers[i].cols == 1) {
            return (uint16_t)i;
        }
    }
    return op->in[0];
}

/* Bytes of an attention's scratch: of an image, or of a token. */
static bool attention_scratch(const build *b, const lil_op *op, uint32_t tokens, uint64_t *bytes) {
    const bool by_table = op->kind == LIL_TABLE_ATTENTION;
    lil_attention_scratch exact;
    lil_table_scratch table;
    if (b->max_tokens > 0) {
        *bytes = 3 * align(op->a[1], 16) + (by_table ? 132 : 92);
        return true;
    }
    const bool fits =
        by_table ? lil_table_layout(tokens, op->a[1], &table) : lil_attention_layout(tokens, op->a[1], &exact);
    *bytes = !fits ? 0 : by_table ? table.bytes : exact.bytes;
    return fits;
}

static bool fit_attention(const build *b, const lil_buffer *x, lil_op *op, lil_buffer *y, lil_buffer *scratch) {
    const uint32_t block = x->cols / 3;
    uint64_t bytes;
    if (op->a[0] == 0 || block % op->a[0] != 0) {
        op->a[0] = block % 2 == 0 && below(2) ? 2 : 1;
    }
    op->a[1] = block / op->a[0];
    op->a[2] = (op->a[2] & 0x7F800000u) == 0x7F800000u ? 0x3E800000u : op->a[2];
    if (!attention_scratch(b, op, x->rows, &bytes)) {
        return false;
    }
    op->a[3] %= b->max_tokens > 0 ? 2 : x->rows;
    *y = (lil_buffer){LIL_F32, op->a[3] > 0 ? op->a[3] : x->rows, block, 0, 0};
    *scratch = (lil_buffer){LIL_U8, b->max_tokens > 0 ? 0 : 1, (uint32_t)bytes, 0, 0};
    return true;
}

static bool fit_embedding(build *b, lil_op *op, lil_buffer *y) {
    const lil_tensor *old = &b->d->tensors[op->tensor[0] < b->d->num_tensors ? op->tensor[0] : 0];
    const uint32_t known = old->rows % 60 + (old->rows % 60 == 0), cols = old->cols % 60 + (old->cols % 60 == 0);
    *y = (lil_buffer){LIL_F32, 0, cols, 0, 0};
    return want_codes(b, op, LIL_ROWS, known, cols) && want_vector(b, op, 1, LIL_BF16, known, true);
}

static uint32_t input_dtype(uint16_t kind) {
    switch (kind) {
    case LIL_NORMALIZE: return LIL_U8;
    case LIL_EMBED_TOKENS: return LIL_U32;
    case LIL_LINEAR:
    case LIL_LINEAR_ADD:
    case LIL_LINEAR_LEVELS: return LIL_I8;
    default: return LIL_F32;
    }
}

/* Inputs, tensors and attributes that fit `op`, whose shapes then give its outputs. False where nothing fits. */
static bool fit(build *b, lil_op *op, lil_buffer y[LIL_NUM_OUTPUTS]) {
    const bool named_again = op->in[1] == op->in[0];
    const bool is_attention = op->kind == LIL_ATTENTION || op->kind == LIL_TABLE_ATTENTION;
    const uint32_t wanted = b->max_tokens > 0 && is_whole(op->kind) ? 0 : ANY_ROWS;
    op->in[0] = find(b, op->in[0], input_dtype(op->kind), wanted, is_attention ? 3 : 1);
    if (op->in[0] == NO_BUFFER || !is_allowed(b, op->kind)) {
        return false;
    }
    if (op->kind == LIL_NORMALIZE) {
        op->in[0] = 0;
    }
    const lil_buffer x = b->buffers[op->in[0]];
    const uint32_t rows = x.rows, cols = x.cols;
    op->in[1] = is_product(op->kind)     ? scales_of(b, op, named_again)
                : op->kind == LIL_CONCAT ? find(b, op->in[1], LIL_F32, rows, 1)
                                         : 0;
    op->in[2] = op->kind == LIL_LINEAR_ADD ? find(b, op->in[2], LIL_F32, rows, 1) : 0;
    if (op->in[2] == NO_BUFFER) {
        return false;
    }
    switch (op->kind) {
    case LIL_NORMALIZE:
        y[0] = (lil_buffer){LIL_F32, rows, cols, 0, 0};
        return want_vector(b, op, 0, LIL_FORMAT_F32, cols, false) && want_vector(b, op, 1, LIL_FORMAT_F32, cols, false);
    case LIL_UNFOLD: return fit_unfold(&x, op, &y[0]);
    case LIL_QUANTIZE:
        op->a[0] = level_bits(op->a[0]);
        y[0] = (lil_buffer){LIL_I8, rows, (uint32_t)align(cols, 8), 0, 0};
        y[1] = (lil_buffer){LIL_F32, rows, 1, 0, 0};
        return true;
    case LIL_LINEAR:
    case LIL_LINEAR_ADD:
    case LIL_LINEAR_LEVELS: return fit_product(b, &x, op, &y[0]);
    case LIL_LAYER_NORM:
        y[0] = x;
        op->a[0] = op->a[0] == 0 || op->a[0] >= 0x7F800000u ? 0x358637BDu : op->a[0];
        return want_vector(b, op, 0, LIL_BF16, cols, false) && want_vector(b, op, 1, LIL_BF16, cols, false);
    case LIL_ATTENTION:
    case LIL_TABLE_ATTENTION: return fit_attention(b, &x, op, &y[0], &y[1]);
    case LIL_PREPEND_TOKEN:
        y[0] = (lil_buffer){LIL_F32, rows + 1, cols, 0, 0};
        return want_codes(b, op, LIL_ROWS, 1, cols) &&
               want_vector(b, op, 1, LIL_BF16, 1, true);
    case LIL_ADD_POSITIONS: {
        const uint32_t positions = b->max_tokens > 0 ? b->max_tokens : rows;
        y[0] = x;
        return want_codes(b, op, LIL_ROWS, positions, cols) && want_vector(b, op, 1, LIL_BF16, positions, true);
    }
    case LIL_SELECT_ROW:
        op->a[0] %= rows > 0 ? rows : 1;
        y[0] = (lil_buffer){LIL_F32, 1, cols, 0, 0};
        return true;
    case LIL_MEAN_ROWS: y[0] = (lil_buffer){LIL_F32, 1, cols, 0, 0}; return true;
    case LIL_EMBED_TOKENS: return fit_embedding(b, op, &y[0]);
    case LIL_NORMALIZE_ROWS: y[0] = x; return true;
    case LIL_SCALE_SHIFT:
        y[0] = x;
        return want_vector(b, op, 0, LIL_BF16, cols, false) && want_vector(b, op, 1, LIL_BF16, cols, false);
    case LIL_NEIGHBORS: y[0] = (lil_buffer){LIL_F32, rows, 3 * cols, 0, 0}; return true;
    case LIL_CONCAT: y[0] = (lil_buffer){LIL_F32, rows, cols + b->buffers[op->in[1]].cols, 0, 0}; return true;
    default: return false;
    }
}

/* Take over one op, if it can be made to fit. */
static bool take_op(build *b, lil_op op) {
    static const uint8_t num_attributes[LIL_NUM_KINDS] = {
        [LIL_UNFOLD] = 5, [LIL_QUANTIZE] = 1, [LIL_LINEAR] = 1, [LIL_LAYER_NORM] = 1, [LIL_ATTENTION] = 4,
        [LIL_TABLE_ATTENTION] = 4, [LIL_SELECT_ROW] = 1, [LIL_LINEAR_LEVELS] = 2};
    lil_buffer y[LIL_NUM_OUTPUTS] = {{0}};
    const uint16_t old[LIL_NUM_OUTPUTS] = {op.out[0], op.out[1]};
    if (b->num_ops >= MAX_DRAFT_RECORDS || b->num_buffers + 2 > MAX_DRAFT_RECORDS || !fit(b, &op, y)) {
        return false;
    }
    for (int i = op.kind < LIL_NUM_KINDS ? num_attributes[op.kind] : 0; i < LIL_NUM_ATTRIBUTES; i++) {
        op.a[i] = 0;
    }
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        y[i].offset = 0;
        const uint64_t elements = (uint64_t)(b->max_tokens > 0 ? 1 : y[i].rows) * y[i].cols;
        if (i == 0 && (elements == 0 || elements > (b->max_tokens > 0 ? MAX_ELEMENTS / 8 : MAX_ELEMENTS))) {
            return false;
        }
    }
    static const uint8_t num_tensors[LIL_NUM_KINDS] = {
        [LIL_NORMALIZE] = 2,  [LIL_LINEAR] = 3,        [LIL_LINEAR_ADD] = 3,
        [LIL_LAYER_NORM] = 2, [LIL_PREPEND_TOKEN] = 2, [LIL_ADD_POSITIONS] = 2,
        [LIL_EMBED_TOKENS] = 2, [LIL_SCALE_SHIFT] = 2, [LIL_LINEAR_LEVELS] = 4};
    for (int i = num_tensors[op.kind]; i < LIL_NUM_TENSORS; i++) {
        op.tensor[i] = 0;
    }
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        op.out[i] = 0;
        if (y[i].dtype != 0) {
            op.out[i] = (uint16_t)b->num_buffers;
            b->renamed[old[i]] = op.out[i];
            b->writers[b->num_buffers] = b->num_ops;
            b->buffers[b->num_buffers++] = y[i];
        }
    }
    b->ops[b->num_ops++] = op;
    return true;
}

/* The last op that reads a buffer, or the one that writes it. */
static uint32_t last_use(const build *b, uint32_t buffer) {
    uint32_t last = b->writers[buffer];
    for (uint32_t i = 0; i < b->num_ops; i++) {
        for (int j = 0; j < LIL_NUM_INPUTS; j++) {
            last = b->ops[i].in[j] == buffer && i > last ? i : last; /* unused slots name buffer 0: the input */
        }
    }
    return last;
}

/* In the arena; of a sequence program: a token. */
static size_t buffer_bytes(const lil_buffer *b) {
    return (size_t)(b->rows > 0 ? b->rows : 1) * b->cols * (b->dtype == LIL_F32 ? 4 : 1);
}

/* First fit by lifetimes; or, half the time, each buffer in a place of its own. */
static size_t plan_arena(build *b, uint32_t output) {
    const bool apart = below(2);
    const size_t alignment = b->max_tokens > 0 ? LIL_TOKEN_ALIGNMENT : LIL_ALIGNMENT;
    size_t arena = 0;
    for (uint32_t i = 1; i < b->num_buffers; i++) {
        size_t start = 0;
        for (bool moved = i != output; moved;) {
            moved = false;
            for (uint32_t j = 1; j < i; j++) {
                const lil_buffer *other = &b->buffers[j];
                const bool together = apart || (b->writers[j] <= last_use(b, i) && b->writers[i] <= last_use(b, j));
                if (j != output && together && start < other->offset + buffer_bytes(other) &&
                    other->offset < start + buffer_bytes(&b->buffers[i])) {
                    start = align((size_t)other->offset + buffer_bytes(other), alignment);
                    moved = true;
                }
            }
        }
        b->buffers[i].offset = start;
        const size_t end = i == output ? 0 : start + buffer_bytes(&b->buffers[i]);
        arena = end > arena ? end : arena;
    }
    return align(arena, alignment);
}

/* Drop the tensors that no op names; their numbers change. */
static void drop_unused_tensors(draft *d) {
    bool used[MAX_DRAFT_RECORDS] = {false};
    uint16_t number[MAX_DRAFT_RECORDS] = {0};
    for (uint32_t i = 0; i < d->num_ops; i++) {
        for (int j = 0; j < LIL_NUM_TENSORS; j++) {
            used[d->ops[i].tensor[j]] = true;
        }
    }
    uint32_t count = 0;
    for (uint32_t i = 0; i < d->num_tensors; i++) {
        number[i] = used[i] ? (uint16_t)count : 0;
        if (used[i]) {
            d->tensors[count] = d->tensors[i];
            d->value_bytes[count] = d->value_bytes[i];
            memmove(d->values[count], d->values[i], d->value_bytes[i]);
            count++;
        }
    }
    for (uint32_t i = 0; i < d->num_ops; i++) {
        for (int j = 0; j < LIL_NUM_TENSORS; j++) {
            d->ops[i].tensor[j] = d->ops[i].tensor[j] < d->num_tensors ? number[d->ops[i].tensor[j]] : 0;
        }
    }
    d->num_tensors = count;
}

void make_vocabulary(draft *d) {
    const uint32_t count = below(4), merges = count > 0 ? below(3) : 0;
    uint32_t words[1 + 2 * 2 + 3] = {merges}, used = 1, end = 0;
    for (uint32_t i = 0; i < 2 * merges; i++) {
        words[used++] = below(count);
    }
    for (uint32_t i = 0; i < count; i++) {
        end += below(3);
        words[used++] = end;
    }
    d->num_words = count;
    d->vocabulary_bytes = count > 0 ? 4 * used + end : 0;
    memcpy(d->vocabulary, words, 4 * used);
    memset(d->vocabulary + 4 * used, 'a', end);
}

/* The input, and an op that reads it. */
static void begin(build *b, const draft *d) {
    const lil_buffer *source = &d->buffers[d->header.input < d->num_buffers ? d->header.input : 0];
    const bool usable = d->num_buffers > 0 && source->rows >= 1 && source->cols >= 1 && source->rows <= 64 && source->cols <= 64;
    const uint16_t reader = b->max_tokens > 0 ? LIL_EMBED_TOKENS : LIL_NORMALIZE;
    b->num_ops = 0;
    b->num_buffers = 1;
    b->buffers[0] = (lil_buffer){LIL_U8, usable ? source->rows : 1 + below(20), usable ? source->cols : 1 + below(9), 0, 0};
    if (b->max_tokens > 0) {
        b->buffers[0] = (lil_buffer){LIL_U32, 0, 1, 0, 0};
    }
    b->renamed[d->header.input < d->num_buffers ? d->header.input & 0xFFFF : 0] = 0;
    if (d->num_ops == 0 || d->ops[0].kind != reader) {
        take_op(b, (lil_op){.kind = reader, .tensor = {NO_TENSOR, NO_TENSOR}});
    }
}

/* The lowest version that has all ops and the draft's tensors. */
static uint32_t version_of(const build *b) {
    uint32_t version = b->max_tokens > 0 ? 2 : 1;
    for (uint32_t i = 0; i < b->d->num_tensors; i++) {
        version = b->d->tensors[i].format >= LIL_APOT4 ? 2 : version;
    }
    for (uint32_t i = 0; i < b->num_ops; i++) {
        const lil_op *op = &b->ops[i];
        const bool no_scales = is_product(op->kind) && op->in[1] == op->in[0];
        const bool late = op->kind == LIL_LINEAR && op->a[0] > FINISH_GELU;
        const bool narrow = op->kind == LIL_QUANTIZE && op->a[0] != 0;
        version = op->kind > LIL_MEAN_ROWS || late || no_scales || narrow ? 2 : version;
    }
    return version;
}

void make_valid(draft *d) {
    static build b;
    memset(b.renamed, 0xFF, sizeof b.renamed);
    memset(b.claimed, 0, sizeof b.claimed);
    b.d = d;
    b.max_tokens = d->header.max_tokens > 64 ? 1 + d->header.max_tokens % 64 : d->header.max_tokens;
    begin(&b, d);
    for (uint32_t i = 0; i < d->num_ops; i++) {
        take_op(&b, d->ops[i]);
    }
    const lil_op *last = &b.ops[b.num_ops - 1]; /* one row of f32 comes out at the end */
    if (b.buffers[last->out[0]].dtype != LIL_F32 || b.buffers[last->out[0]].rows != 1) {
        while (!take_op(&b, (lil_op){.kind = LIL_MEAN_ROWS, .in = {NO_BUFFER}})) {
            b.num_buffers -= b.ops[b.num_ops - 1].out[1] != 0 ? 2 : 1;
            b.num_ops--;
        }
    }
    const uint32_t output = b.ops[b.num_ops - 1].out[0];
    lil_header header = {.arena_bytes = plan_arena(&b, output), .output = output, .max_tokens = b.max_tokens};
    b.buffers[output].offset = 0;
    d->num_buffers = b.num_buffers;
    d->num_ops = b.num_ops;
    d->num_words = 0;
    d->vocabulary_bytes = 0;
    if (b.max_tokens > 0) {
        make_vocabulary(d);
    }
    memcpy(d->buffers, b.buffers, sizeof d->buffers);
    memcpy(d->ops, b.ops, sizeof d->ops);
    drop_unused_tensors(d);
    header.version = version_of(&b);
    header.num_sections = header.version > 1 ? LIL_NUM_SECTIONS : LIL_NUM_SECTIONS - 1;
    memcpy(header.magic, lil_magic, sizeof lil_magic);
    d->header = header;
}
