/* Which instruction sets this build has kernels for: one table of them each. Internal. */
#ifndef LIL_ISA_H
#define LIL_ISA_H

#include "lil.h"
#include "lil_kernels.h"

/* What this processor and its system let us use, of what this build has. */
typedef struct lil_cpu {
    bool isa[LIL_ISA_COUNT];
    bool clmul; /* x86-64: carry-less products and SSE 4.1 */
} lil_cpu;
lil_cpu lil_detect(void);

extern const lil_kernel_table lil_kernels_scalar; /* every kind; in lil_run.c */

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__)) && !defined(LIL_SCALAR_ONLY)
#define LIL_X86 1
extern const lil_kernel_table lil_kernels_avx2, lil_kernels_avx512;
#else
#define LIL_X86 0
#endif

/* Linux hands out AMX's registers on demand; other systems are left to AVX-512. */
#define LIL_HAS_AMX 0
#if LIL_X86 && defined(__linux__) && defined(__has_include)
#if __has_include(<amxtileintrin.h>) || __has_include(<amxintrin.h>) /* GCC, Clang */
#undef LIL_HAS_AMX
#define LIL_HAS_AMX 1
extern const lil_kernel_table lil_kernels_amx;
#endif
#endif

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(LIL_SCALAR_ONLY)
#define LIL_ARM 1
extern const lil_kernel_table lil_kernels_neon, lil_kernels_neondot;
#else
#define LIL_ARM 0
#endif

#endif
