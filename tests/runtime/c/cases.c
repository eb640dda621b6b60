/* Compares the kernels of one instruction set with the scalar ones on random calls, bit for bit (a NaN equals any NaN).
 *
 *     cases ISA COUNT SEED [KIND [FIRST]]
 *
 * COUNT calls of each kind, or of KIND alone; case i of a seed is the same whatever COUNT and FIRST are. Prints one
 * line a kind: its number, its name, cases (0: it has no kernel of this instruction set), and a digest of the outputs,
 * which is the same on every target. On the first difference prints the case, and exits with 1; with 2 where ISA is
 * unknown, with 3 where this processor lacks it. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lil.h"
#include "lil_isa.h"

#include "cases_calls.h"

static const char *const kind_names[LIL_NUM_KINDS] = {
    [LIL_NORMALIZE] = "normalize",
    [LIL_UNFOLD] = "unfold",
    [LIL_QUANTIZE] = "quantize",
    [LIL_LINEAR] = "linear",
    [LIL_LINEAR_ADD] = "linear_add",
    [LIL_LAYER_NORM] = "layer_norm",
    [LIL_ATTENTION] = "attention",
    [LIL_PREPEND_TOKEN] = "prepend_token",
    [LIL_ADD_POSITIONS] = "add_positions",
    [LIL_SELECT_ROW] = "select_row",
    [LIL_MEAN_ROWS] = "mean_rows",
    [LIL_EMBED_TOKENS] = "embed_tokens",
    [LIL_NORMALIZE_ROWS] = "normalize_rows",
    [LIL_SCALE_SHIFT] = "scale_shift",
    [LIL_NEIGHBORS] = "neighbors",
    [LIL_CONCAT] = "concat",
    [LIL_TABLE_ATTENTION] = "table_attention",
    [LIL_LINEAR_LEVELS] = "linear_levels",
};

static const lil_kernel_table *const tables[LIL_ISA_COUNT] = {
    [LIL_SCALAR] = &lil_kernels_scalar,
#if LIL_X86
    [LIL_AVX2] = &lil_kernels_avx2,
    [LIL_AVX512] = &lil_kernels_avx512,
#endif
#if LIL_HAS_AMX
    [LIL_AMX] = &lil_kernels_amx,
#endif
#if LIL_ARM
    [LIL_NEON] = &lil_kernels_neon,
    [LIL_NEONDOT] = &lil_kernels_neondot,
#endif
};

/* What runs now, for the message. */
static struct {
    const char *isa;
    unsigned long long seed;
    size_t index;
    int kind;
    const test_case *c;
} now;

static void print_case(void) {
    const lil_call *call = &now.c->call;
    fprintf(stderr, "%s of %s: cases %s 1 %llu %d %zu\n", kind_names[now.kind], now.isa, now.isa, now.seed, now.kind,
            now.index);
    for (int i = 0; i < LIL_NUM_INPUTS && call->in[i].data != NULL; i++) {
        fprintf(stderr, "  in %d: %zu x %zu, address %% 64 = %zu\n", i, call->in[i].rows, call->in[i].cols,
                (size_t)((uintptr_t)call->in[i].data % 64));
    }
    for (int i = 0; i < LIL_NUM_OUTPUTS && now.c->bytes[i] > 0; i++) {
        fprintf(stderr, "  out %d: %zu x %zu, address %% 64 = %zu\n", i, call->out[i].rows, call->out[i].cols,
                now.c->shift[i] % 64);
    }
    for (int i = 0; i < LIL_NUM_TENSORS && call->tensor[i].data != NULL; i++) {
        fprintf(stderr, "  tensor %d: %zu x %zu, format %d, layout %d\n", i, call->tensor[i].rows,
                call->tensor[i].cols, call->tensor[i].format, call->tensor[i].layout);
    }
    fprintf(stderr, "  attributes: %u %u %u %u %u; part [%zu, %zu)\n", call->a[0], call->a[1], call->a[2], call->a[3],
            call->a[4], now.c->part.begin, now.c->part.end);
}

static void on_fault(int signal_number) {
    fprintf(stderr, "signal %d\n", signal_number);
    print_case();
    _exit(1);
}

/* The address sanitizer calls this before its report. */
void __asan_on_error(void);
void __asan_on_error(void) {
    print_case();
}

static void run_kernel(test_case *c, lil_kernel kernel, int which) {
    for (int i = 0; i < LIL_NUM_OUTPUTS && c->bytes[i] > 0; i++) {
        c->call.out[i].data = c->outputs[which][i] + c->shift[i];
    }
    if (c->scratch_bytes > 0) {
        c->part.scratch = allocate_at_end(c, c->scratch_bytes);
        memset(c->part.scratch, which == 0 ? 0x5A : 0xFF, c->scratch_bytes); /* what was there must not matter */
    }
    kernel(&c->call, &c->part);
}

static float float_at(const uint8_t *bytes) {
    float value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Compare output `i` and all around it; print the first difference. */
static bool equal(const test_case *c, int i) {
    const uint8_t *wanted = c->outputs[0][i], *given = c->outputs[1][i];
    if (c->bytes[i] == 0 || memcmp(wanted, given, c->bytes[i]) == 0) {
        return true;
    }
    const size_t begin = c->shift[i], end = c->bytes[i] - GUARD, size = element_bytes(c->is_float[i]);
    for (size_t b = 0, step; b < c->bytes[i]; b += step) {
        const bool is_float = c->is_float[i] && b >= begin && b < end;
        step = is_float ? size : 1;
        const float x = is_float ? float_at(wanted + b) : (float)(int8_t)wanted[b];
        const float y = is_float ? float_at(given + b) : (float)(int8_t)given[b];
        if (memcmp(wanted + b, given + b, step) != 0 && !(isnan(x) && isnan(y))) {
            const ptrdiff_t element = ((ptrdiff_t)b - (ptrdiff_t)begin) / (ptrdiff_t)size; /* < 0: before the output */
            print_case();
            fprintf(stderr, "  out %d, element %td: must be %.9g (%a), is %.9g (%a)\n", i, element, (double)x,
                    (double)x, (double)y, (double)y);
            return false;
        }
    }
    return true;
}

/* FNV-1a of the outputs' words or bytes; all NaNs are one. */
static uint32_t digest_of(const test_case *c, uint32_t digest) {
    for (int i = 0; i < LIL_NUM_OUTPUTS; i++) {
        const size_t size = element_bytes(c->is_float[i]);
        for (size_t b = c->shift[i]; b + GUARD < c->bytes[i]; b += size) {
            uint32_t bits = 0;
            memcpy(&bits, c->outputs[0][i] + b, size);
            const bool is_nan = c->is_float[i] && isnan(lil_float_from_bits(bits));
            digest = (digest ^ (is_nan ? 0x7FC00000u : bits)) * 0x01000193u;
        }
    }
    return digest;
}

static bool run_case(lil_kernel kernel, unsigned long long seed, int kind, size_t index, uint32_t *digest) {
    test_case c = {.num_regions = 0};
    random_state = seed * 1000003u + (uint64_t)kind * 0x100000001B3u + index;
    random_state = random_bits();
    now.index = index;
    now.kind = kind;
    now.c = &c;
    makers[kind](&c);
    run_kernel(&c, lil_kernels_scalar[kind], 0);
    run_kernel(&c, kernel, 1);
    bool same = true;
    for (int i = 0; i < LIL_NUM_OUTPUTS && same; i++) {
        same = equal(&c, i);
    }
    *digest = digest_of(&c, *digest);
    release(&c);
    return same;
}

static lil_isa isa_of(const char *name) {
    for (int i = 0; i < LIL_ISA_COUNT; i++) {
        if (strcmp(name, lil_isa_name((lil_isa)i)) == 0) {
            return (lil_isa)i;
        }
    }
    return LIL_ISA_COUNT;
}

int main(int argc, char **argv) {
    const lil_isa isa = argc >= 4 ? isa_of(argv[1]) : LIL_ISA_COUNT;
    const int only = argc >= 5 ? atoi(argv[4]) : 0;
    if (isa == LIL_ISA_COUNT || only < 0 || only >= LIL_NUM_KINDS) {
        fprintf(stderr, "usage: cases ISA COUNT SEED [KIND [FIRST]]\n");
        return 2;
    }
    if (!lil_isa_available(isa)) {
        fprintf(stderr, "%s: not available here\n", argv[1]);
        return 3;
    }
    const size_t count = strtoull(argv[2], NULL, 10), first = argc >= 6 ? strtoull(argv[5], NULL, 10) : 0;
    now.isa = argv[1];
    now.seed = strtoull(argv[3], NULL, 10);
#ifndef __SANITIZE_ADDRESS__
    (void)signal(SIGSEGV, on_fault);
    (void)signal(SIGBUS, on_fault);
#else
    (void)on_fault;
#endif
    for (int kind = only > 0 ? only : 1; kind < (only > 0 ? only + 1 : LIL_NUM_KINDS); kind++) {
        const lil_kernel kernel = (*tables[isa])[kind]; /* NULL: another table's serves */
        uint32_t digest = 0;
        for (size_t i = first; kernel != NULL && i < first + count; i++) {
            if (!run_case(kernel, now.seed, kind, i, &digest)) {
                return 1;
            }
        }
        printf("%d %s %zu %08x\n", kind, kind_names[kind], kernel != NULL ? count : 0, digest);
    }
    return 0;
}
