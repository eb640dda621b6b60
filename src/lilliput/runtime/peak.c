/* How many int8 multiply-adds a second one core reaches with an instruction set, from registers: the roof that
 * `lil bench --profile` holds the matrix products to. Not a part of the core. */
#include "peak.h"

#include <time.h>

#include "lil_isa.h"

#if LIL_HAS_AMX
#include <immintrin.h>
#endif

enum { CHAINS = 8, REPEATS = 2000 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Each does REPEATS times CHAINS independent steps and gives the multiply-adds of one step. */
static double scalar_work(void) {
    int32_t sums[CHAINS] = {0};
    for (int i = 0; i < REPEATS; i++) {
        for (int c = 0; c < CHAINS; c++) {
            __asm__ volatile("" : "+r"(sums[c]));
            sums[c] += (int8_t)i * (int8_t)c;
        }
    }
    return 1;
}

#if LIL_X86
/* The cheapest way that a kernel has: eight products of pairs are added in 16 bits before they are widened. */
static double avx2_work(void) {
    for (int i = 0; i < REPEATS; i++) {
#define PAIR(n, product)                                                                                              \
    "vpmaddubsw %%ymm14, %%ymm15, %%ymm" #product "\n\tvpaddw %%ymm" #product ", %%ymm" #n ", %%ymm" #n "\n\t"
        __asm__ volatile(PAIR(0, 8) PAIR(1, 9) PAIR(2, 10) PAIR(3, 11) PAIR(0, 8) PAIR(1, 9) PAIR(2, 10) PAIR(3, 11)
                         "vpmaddwd %%ymm0, %%ymm13, %%ymm8\n\tvpaddd %%ymm8, %%ymm4, %%ymm4\n\t"
                         :
                         :
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm8", "xmm9", "xmm10", "xmm11");
#undef PAIR
    }
    __asm__ volatile("vzeroupper");
    return 32;
}

static double avx512_work(void) {
    for (int i = 0; i < REPEATS; i++) {
#define STEP(n) "vpdpbusd %%zmm14, %%zmm15, %%zmm" #n "\n\t"
        __asm__ volatile(STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8) STEP(9) STEP(10)
                             STEP(11) STEP(0) STEP(1) STEP(2) STEP(3)
                         :
                         :
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                           "xmm11");
#undef STEP
    }
    __asm__ volatile("vzeroupper");
    return 2 * 64; /* 16 products for 8 steps */
}
#endif

#if LIL_HAS_AMX
__attribute__((target("amx-tile,amx-int8"))) static double amx_work(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* GCC 12 thinks that only 8 bytes of it are read */
    _tile_loadconfig(&config);
    for (int i = 0; i < REPEATS; i++) {
        _tile_dpbssd(0, 6, 7);
        _tile_dpbssd(1, 6, 7);
        _tile_dpbssd(2, 6, 7);
        _tile_dpbssd(3, 6, 7);
        _tile_dpbssd(0, 6, 7);
        _tile_dpbssd(1, 6, 7);
        _tile_dpbssd(2, 6, 7);
        _tile_dpbssd(3, 6, 7);
    }
    _tile_release();
    return 16 * 16 * 64;
}
#endif

#if LIL_ARM
static double neon_work(void) {
    for (int i = 0; i < REPEATS; i++) {
#define STEP(n, product)                                                                                              \
    "smull v" #product ".8h, v30.8b, v31.8b\n\tsmlal2 v" #product ".8h, v30.16b, v31.16b\n\tsadalp v" #n ".4s, v"     \
    #product ".8h\n\t"
        __asm__ volatile(STEP(0, 16) STEP(1, 17) STEP(2, 18) STEP(3, 19) STEP(4, 16) STEP(5, 17) STEP(6, 18) STEP(7, 19)
                         :
                         :
                         : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19");
#undef STEP
    }
    return 16;
}

static double neondot_work(void) {
    for (int i = 0; i < REPEATS; i++) {
#define STEP(n) "sdot v" #n ".4s, v30.16b, v31.16b\n\t"
        __asm__ volatile(".arch_extension dotprod\n\t" STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
                         :
                         :
                         : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7");
#undef STEP
    }
    return 16;
}
#endif

static double (*const work[LIL_ISA_COUNT])(void) = {
    [LIL_SCALAR] = scalar_work,
#if LIL_X86
    [LIL_AVX2] = avx2_work,
    [LIL_AVX512] = avx512_work,
#endif
#if LIL_HAS_AMX
    [LIL_AMX] = amx_work,
#endif
#if LIL_ARM
    [LIL_NEON] = neon_work,
    [LIL_NEONDOT] = neondot_work,
#endif
};

double lil_peak_macs_per_second(lil_isa isa) {
    double best = 0;
    const double end = seconds() + 0.05; /* long enough for the clock to settle */
    while (seconds() < end) {
        const double start = seconds();
        double macs = 0;
        for (int i = 0; i < 10; i++) {
            macs += work[isa]() * CHAINS * REPEATS;
        }
        const double rate = macs / (seconds() - start);
        best = rate > best ? rate : best;
    }
    return best;
}
