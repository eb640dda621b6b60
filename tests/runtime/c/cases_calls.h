/* Random calls of each kind of kernel, for cases.c: shapes, attributes and parts. */
#ifndef CASES_CALLS_H
#define CASES_CALLS_H

#include "cases_operands.h"

/* All of `count` rows or heads, or some. */
static void set_part(test_case *c, size_t count) {
    const size_t begin = one_in(2) ? 0 : below(count);
    c->part.begin = begin;
    c->part.end = begin == 0 && !one_in(4) ? count : between(begin + 1, count);
}

static void make_normalize(test_case *c) {
    const size_t rows = random_size(70), cols = one_in(2) ? between(1, 4) : random_size(200);
    uint8_t *x = allocate_anywhere(c, rows * cols);
    for (size_t i = 0; i < rows * cols; i++) {
        x[i] = (uint8_t)random_bits();
    }
    c->call.in[0] = (lil_input){x, rows, cols};
    for (int i = 0; i < 2; i++) {
        fill_f32(add_tensor(c, i, LIL_FORMAT_F32, LIL_ROWS, 1, cols, 4 * cols), cols);
    }
    add_output(c, 0, rows, cols, true);
    set_part(c, rows);
}

static void make_unfold(test_case *c) {
    const size_t height = between(1, 12), width = between(1, one_in(8) ? 40 : 12);
    const size_t channels = one_in(2) ? between(1, 4) : random_size(40), kernel = between(1, 5);
    size_t padding = below(kernel);
    while (kernel > height + 2 * padding || kernel > width + 2 * padding) {
        padding++; /* ends: kernel - 1 is enough */
    }
    const size_t stride = between(1, kernel + 1);
    const size_t out_height = (height + 2 * padding - kernel) / stride + 1;
    const size_t out_width = (width + 2 * padding - kernel) / stride + 1;
    const size_t attributes[] = {height, width, kernel, stride, padding};
    for (size_t i = 0; i < 5; i++) {
        c->call.a[i] = (uint32_t)attributes[i];
    }
    (void)add_floats(c, 0, height * width, channels);
    add_output(c, 0, out_height * out_width, kernel * kernel * channels, true);
    set_part(c, out_height * out_width);
}

/* Of a level, as the attribute says it. */
static uint32_t random_level_bits(void) {
    static const uint8_t some[] = {0, 0, 4, 6};
    return some[below(4)];
}

static void make_quantize(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(one_in(64) ? 2000 : 200);
    (void)add_floats(c, 0, rows, cols);
    add_output(c, 0, rows, (cols + 7) / 8 * 8, false);
    add_output(c, 1, rows, 1, true);
    set_part(c, rows);
    c->call.a[0] = random_level_bits();
}

static void make_product(test_case *c, bool to_levels) {
    const bool deep = one_in(100);
    const size_t rows = random_size(70), depth = deep ? between(1000, 4200) : random_size(one_in(8) ? 600 : 130);
    const size_t outputs = random_size(deep ? 33 : one_in(8) ? 300 : 80), padded = (depth + 7) / 8 * 8;
    fill_levels(add_input(c, 0, rows, padded, false), rows * padded); /* past K too: the codes there are 0 */
    float *scales = add_floats(c, 1, rows, 1);
    const bool usual = !one_in(4);
    for (size_t r = 0; r < rows && usual; r++) {
        scales[r] = fabsf(random_unit()) * 0.05f;
    }
    add_codes_in_tiles(c, 0, outputs, depth);
    add_bf16(c, 1, outputs, one_in(2) ? 0.005f : 0.1f, false);
    add_bf16(c, 2, outputs, 4.0f, true);
    if (one_in(3)) {
        c->call.in[1] = c->call.in[0]; /* no scales */
    }
    if (to_levels) {
        add_bf16(c, 3, outputs, one_in(4) ? 1e4f : 60.0f, true);
    }
    add_output(c, 0, rows, to_levels ? (outputs + 7) / 8 * 8 : outputs, !to_levels);
    set_part(c, rows);
}

static void make_linear(test_case *c) {
    make_product(c, false);
    c->call.a[0] = (uint32_t)below(FINISH_ADD);
}

static void make_linear_levels(test_case *c) {
    make_product(c, true);
    c->call.a[0] = (uint32_t)below(FINISH_GELU_TANH + 1);
    c->call.a[1] = random_level_bits();
}

static void make_linear_add(test_case *c) {
    make_product(c, false);
    (void)add_floats(c, 2, c->call.out[0].rows, c->call.out[0].cols);
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void make_layer_norm(test_case *c) {
    static const float some_eps[] = {1e-6f, 1e-5f, 1e-45f, 3e38f, 1.0f};
    const size_t rows = random_size(70), cols = random_size(one_in(64) ? 2000 : 200);
    (void)add_floats(c, 0, rows, cols);
    add_bf16(c, 0, cols, 2.0f, true);
    add_bf16(c, 1, cols, 2.0f, true);
    add_output(c, 0, rows, cols, true);
    c->call.a[0] = bits_of(some_eps[below(5)]);
    set_part(c, rows);
}

/* Either attention on `tokens` rows, in rows of floats that are one example's or lie among those of others. */
static void make_heads(test_case *c, size_t tokens, bool by_table) {
    static const float some_scales[] = {0.25f, 0.125f, 1.0f, -3.0f, 0.0f, 3e38f, 1e-40f};
    const size_t head_dim = random_size(one_in(3) ? 100 : 40);
    const size_t num_heads = tokens > 100 ? 1 : between(1, one_in(4) ? 4 : 2);
    const size_t width = num_heads * head_dim, asking = one_in(4) ? below(tokens) : 0; /* 0: all of them ask */
    const float usual = (by_table ? 128.0f : 4.0f) / (float)head_dim;
    float *x = add_rows(c, 0, tokens, 3 * width);
    for (size_t i = 0; i < tokens * 3 * width; i++) {
        x[i] = random_unit() * 3.0f;
    }
    for (size_t block = one_in(2) ? 3 : below(3); block < 3; block++) { /* all plain; values; keys, values; all */
        fill_floats(x + block * width, tokens, width, 3 * width);
    }
    add_output(c, 0, asking > 0 ? asking : tokens, width, true);
    c->call.a[0] = (uint32_t)num_heads;
    c->call.a[1] = (uint32_t)head_dim;
    c->call.a[2] = bits_of(one_in(3) ? some_scales[below(7)] * (by_table ? 32.0f : 1.0f) : usual);
    c->call.a[3] = (uint32_t)asking;
    if (by_table) {
        lil_table_scratch at;
        (void)lil_table_layout(tokens, head_dim, &at);
        c->scratch_bytes = (size_t)at.bytes;
    } else {
        lil_attention_scratch at;
        (void)lil_attention_layout(tokens, head_dim, &at);
        c->scratch_bytes = (size_t)at.bytes;
    }
    c->call.out[1] = (lil_output){NULL, 1, c->scratch_bytes}; /* another thread's, perhaps: kernels take the part's */
    set_part(c, num_heads);
}

static void make_attention(test_case *c) {
    make_heads(c, one_in(256) ? between(100, 260) : random_size(one_in(12) ? 100 : 33), false);
}

static void make_table_attention(test_case *c) {
    make_heads(c, one_in(256) ? between(100, 260) : random_size(one_in(12) ? 100 : 70), true);
}

static void make_prepend_token(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    (void)add_floats(c, 0, rows, cols);
    add_codes_in_rows(c, 0, 1, cols);
    add_bf16(c, 1, 1, 1.0f, false);
    add_output(c, 0, rows + 1, cols, true);
    c->part.end = 1;
}

static void make_add_positions(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    fill_floats(add_rows(c, 0, rows, cols), rows, cols, cols);
    add_codes_in_rows(c, 0, rows, cols);
    add_bf16(c, 1, rows, 0.1f, false);
    add_output(c, 0, rows, cols, true);
    set_part(c, rows);
}

static void make_select_row(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    fill_floats(add_rows(c, 0, rows, cols), rows, cols, cols);
    add_output(c, 0, 1, cols, true);
    c->call.a[0] = (uint32_t)below(rows);
    c->part.end = 1;
}

static void make_mean_rows(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    fill_floats(add_rows(c, 0, rows, cols), rows, cols, cols);
    add_output(c, 0, 1, cols, true);
    c->part.end = 1;
}

static void make_embed_tokens(test_case *c) {
    const size_t known = random_size(200), rows = random_size(70), cols = random_size(200);
    uint8_t *ids = allocate_at_end(c, rows * 4); /* the caller's */
    for (size_t r = 0; r < rows; r++) {
        const uint32_t id = (uint32_t)(one_in(4) ? known - 1 : below(known));
        memcpy(ids + 4 * r, &id, sizeof id);
    }
    c->call.in[0] = (lil_input){ids, rows, 1};
    add_codes_in_rows(c, 0, known, cols);
    add_bf16(c, 1, known, 0.1f, false);
    add_output(c, 0, rows, cols, true);
    set_part(c, rows);
}

static void make_normalize_rows(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(one_in(64) ? 2000 : 200);
    (void)add_floats(c, 0, rows, cols);
    add_output(c, 0, rows, cols, true);
    set_part(c, rows);
}

static void make_scale_shift(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(200);
    (void)add_floats(c, 0, rows, cols);
    add_bf16(c, 0, cols, 2.0f, true);
    add_bf16(c, 1, cols, 2.0f, true);
    add_output(c, 0, rows, cols, true);
    set_part(c, rows);
}

static void make_neighbors(test_case *c) {
    const size_t rows = random_size(70), cols = random_size(100);
    fill_floats(add_rows(c, 0, rows, cols), rows, cols, cols);
    add_output(c, 0, rows, 3 * cols, true);
    set_part(c, rows);
}

static void make_concat(test_case *c) {
    const size_t rows = random_size(70), first = random_size(100), second = random_size(100);
    (void)add_floats(c, 0, rows, first);
    (void)add_floats(c, 1, rows, second);
    add_output(c, 0, rows, first + second, true);
    set_part(c, rows);
}

static void (*const makers[LIL_NUM_KINDS])(test_case *c) = {
    [LIL_NORMALIZE] = make_normalize,
    [LIL_UNFOLD] = make_unfold,
    [LIL_QUANTIZE] = make_quantize,
    [LIL_LINEAR] = make_linear,
    [LIL_LINEAR_ADD] = make_linear_add,
    [LIL_LAYER_NORM] = make_layer_norm,
    [LIL_ATTENTION] = make_attention,
    [LIL_PREPEND_TOKEN] = make_prepend_token,
    [LIL_ADD_POSITIONS] = make_add_positions,
    [LIL_SELECT_ROW] = make_select_row,
    [LIL_MEAN_ROWS] = make_mean_rows,
    [LIL_EMBED_TOKENS] = make_embed_tokens,
    [LIL_NORMALIZE_ROWS] = make_normalize_rows,
    [LIL_SCALE_SHIFT] = make_scale_shift,
    [LIL_NEIGHBORS] = make_neighbors,
    [LIL_CONCAT] = make_concat,
    [LIL_TABLE_ATTENTION] = make_table_attention,
    [LIL_LINEAR_LEVELS] = make_linear_levels,
};

#endif
