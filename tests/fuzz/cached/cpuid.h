/* <cpuid.h> for the fuzzer's build, asking the processor once: on a virtual machine each `cpuid` is a trap of many
 * microseconds, and lil_open asks a few times. */
#ifndef LIL_FUZZ_CPUID_H
#define LIL_FUZZ_CPUID_H

#include_next <cpuid.h>

typedef struct fuzz_leaf {
    int asked, found;
    unsigned int a, b, c, d;
} fuzz_leaf;

static inline int fuzz_cpuid(unsigned int leaf, unsigned int *a, unsigned int *b, unsigned int *c, unsigned int *d) {
    static fuzz_leaf leaves[8];
    fuzz_leaf *l = &leaves[leaf % 8];
    if (!l->asked) {
        l->found = leaf == 7 ? __get_cpuid_count(leaf, 0, &l->a, &l->b, &l->c, &l->d)
                             : __get_cpuid(leaf, &l->a, &l->b, &l->c, &l->d);
        l->asked = 1;
    }
    *a = l->a, *b = l->b, *c = l->c, *d = l->d;
    return l->found;
}

#define __get_cpuid(leaf, a, b, c, d) fuzz_cpuid(leaf, a, b, c, d)
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) ((void)sizeof(char[(subleaf) == 0 ? 1 : -1]), fuzz_cpuid(leaf, a, b, c, d))

#endif
