/* Which instruction sets this build has kernels for: one table of them each. Internal. */
#ifndef LIL_ISA_H
#define LIL_ISA_H

#include "lil_kernels.h"

extern const lil_kernel_table lil_kernels_scalar; /* every kind; in lil_run.c */

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__)) && !defined(LIL_SCALAR_ONLY)
#define LIL_X86 1
extern const lil_kernel_table lil_kernels_avx2, lil_kernels_avx512;
bool lil_has_clmul(void); /* SSE 4.1 and carry-less products: for the checksum */
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
