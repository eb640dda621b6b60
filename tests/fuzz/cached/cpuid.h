/* <cpuid.h> for the fuzzer's build, asking the processor once: on a virtual machine each `cpuid` is a trap of many
 * microseconds, and lil_open asks a few times. */
#ifndef LIL_FUZZ_CPUID_H
#define LIL_FUZZ_CPUID_H

#include_next <cpuid.h>

/* A leaf's four registers, as the processor gave them the first time. */
static inline const unsigned int *fuzz_cpuid(unsigned int leaf) {
    static struct {
        int asked;
        unsigned int registers[4];
    } leaves[8];
    if (!leaves[leaf % 8].asked) {
        unsigned int *r = leaves[leaf % 8].registers;
        __cpuid_count(leaf, 0, r[0], r[1], r[2], r[3]);
        leaves[leaf % 8].asked = 1;
    }
    return leaves[leaf % 8].registers;
}

#undef __cpuid
#undef __cpuid_count
#define __cpuid(leaf, eax, ebx, ecx, edx)                                                                             \
    do {                                                                                                              \
        const unsigned int *fuzz_registers = fuzz_cpuid(leaf);                                                        \
        (eax) = fuzz_registers[0], (ebx) = fuzz_registers[1], (ecx) = fuzz_registers[2], (edx) = fuzz_registers[3];   \
    } while (0)
#define __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx) __cpuid(leaf, eax, ebx, ecx, edx) /* only 0 is asked for */

#endif
