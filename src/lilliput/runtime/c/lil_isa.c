/* The instruction sets: their names, and what this processor has. */
#define _DEFAULT_SOURCE /* for syscall(), which C11 alone does not show */
#include "lil.h"
#include "lil_isa.h"

#if LIL_X86
#include <cpuid.h>
#endif
#if LIL_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if LIL_ARM && defined(__linux__)
#include <sys/auxv.h>
#endif

static const char *const names[LIL_ISA_COUNT] = {
    [LIL_SCALAR] = "scalar", [LIL_AVX2] = "avx2",       [LIL_AVX512] = "avx512",
    [LIL_AMX] = "amx",       [LIL_NEON] = "neon", [LIL_NEONDOT] = "neondot",
};

const char *lil_isa_name(lil_isa isa) {
    const int index = (int)isa;
    return index >= 0 && index < LIL_ISA_COUNT ? names[index] : NULL;
}

#if LIL_X86
/* Whether the system lets this process have tile registers; asking again is harmless. */
static bool may_use_tiles(uint32_t state) {
#if LIL_HAS_AMX && defined(SYS_arch_prctl)
    enum { TILE_STATE = 3 << 17, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return (state & TILE_STATE) == TILE_STATE && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    (void)state;
    return false;
#endif
}

/* Each cpuid may cost a virtual machine microseconds: there are two. */
lil_cpu lil_detect(void) {
    lil_cpu cpu = {.isa = {[LIL_SCALAR] = true}};
    uint32_t a, b, c, d, state, state_high;
    const uint32_t clmul = 1u << 1 | 1u << 19; /* and SSE 4.1 */
    const uint32_t avx = 1u << 27 | 1u << 28;  /* and the system saves its state */
    const uint32_t avx2 = 1u << 5;
    const uint32_t avx512 = 1u << 8 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* BMI2, F, DQ, BW, VL */
    const uint32_t vbmi_vnni = 1u << 1 | 1u << 11, amx_int8 = 1u << 24 | 1u << 25;
    __cpuid(1, a, b, c, d);
    cpu.clmul = (c & clmul) == clmul;
    if ((c & avx) != avx) {
        return cpu;
    }
    /* The registers whose state is saved: bit 1 SSE, 2 AVX, 5 to 7 AVX-512. Whoever has AVX has leaf 7. */
    __asm__ volatile("xgetbv" : "=a"(state), "=d"(state_high) : "c"(0));
    __cpuid_count(7, 0, a, b, c, d);
    cpu.isa[LIL_AVX2] = (state & 0x06) == 0x06 && (b & avx2) != 0;
    cpu.isa[LIL_AVX512] = cpu.isa[LIL_AVX2] && (state & 0xE6) == 0xE6 && (b & avx512) == avx512 &&
                          (c & vbmi_vnni) == vbmi_vnni;
    cpu.isa[LIL_AMX] = cpu.isa[LIL_AVX512] && (d & amx_int8) == amx_int8 && may_use_tiles(state);
    return cpu;
}
#elif LIL_ARM
lil_cpu lil_detect(void) {
    lil_cpu cpu = {.isa = {[LIL_SCALAR] = true, [LIL_NEON] = true}}; /* NEON is a part of aarch64 */
#if defined(__linux__)
    cpu.isa[LIL_NEONDOT] = (getauxval(AT_HWCAP) & 1ul << 20) != 0; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__) || defined(__ARM_FEATURE_DOTPROD)
    cpu.isa[LIL_NEONDOT] = true;
#endif
    return cpu;
}
#else
lil_cpu lil_detect(void) {
    return (lil_cpu){.isa = {[LIL_SCALAR] = true}};
}
#endif

bool lil_isa_available(lil_isa isa) {
    return lil_isa_name(isa) != NULL && lil_detect().isa[isa];
}

lil_status lil_use_isa(lil_model *model, lil_isa isa) {
    if (model == NULL) {
        return LIL_NULL_ARGUMENT;
    }
    if (!lil_isa_available(isa)) {
        return LIL_ISA_MISSING;
    }
    model->isa = isa;
    return LIL_OK;
}
