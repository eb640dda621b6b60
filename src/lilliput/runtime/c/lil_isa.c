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
/* The register state that the system saves for a process: bit 1 SSE, 2 AVX, 5 to 7 AVX-512. */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool lil_has_clmul(void) {
    uint32_t a, b, c, d;
    const uint32_t needed = 1u << 1 | 1u << 19;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & needed) == needed;
}

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

static bool has_x86(lil_isa isa) {
    uint32_t a, b, c, d;
    enum { OSXSAVE = 1 << 27, AVX = 1 << 28, AVX_STATE = 0x06, AVX512_STATE = 0xE6, AVX2 = 1 << 5 };
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    const uint32_t vbmi_vnni = 1u << 1 | 1u << 11, amx_int8 = 1u << 24 | 1u << 25;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (OSXSAVE | AVX)) != (OSXSAVE | AVX)) {
        return false;
    }
    const uint32_t state = saved_state();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (state & AVX_STATE) != AVX_STATE || !(b & AVX2)) {
        return false;
    }
    if (isa == LIL_AVX2) {
        return true;
    }
    if ((state & AVX512_STATE) != AVX512_STATE || (b & avx512) != avx512 || (c & vbmi_vnni) != vbmi_vnni) {
        return false;
    }
    return isa == LIL_AVX512 || ((d & amx_int8) == amx_int8 && may_use_tiles(state));
}
#endif

#if LIL_ARM
static bool has_arm(lil_isa isa) {
    if (isa == LIL_NEON) {
        return true; /* a part of aarch64 */
    }
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & 1ul << 20) != 0; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__) || defined(__ARM_FEATURE_DOTPROD)
    return true;
#else
    return false;
#endif
}
#endif

bool lil_isa_available(lil_isa isa) {
    switch (isa) {
    case LIL_SCALAR: return true;
#if LIL_X86
    case LIL_AVX2:
    case LIL_AVX512:
    case LIL_AMX: return has_x86(isa);
#endif
#if LIL_ARM
    case LIL_NEON:
    case LIL_NEONDOT: return has_arm(isa);
#endif
    default: return false;
    }
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
