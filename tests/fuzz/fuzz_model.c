/* The libFuzzer target: opens and runs a `model.lil`. See README.md. */
#include <stdio.h>

#include "execute.h"
#include "mutate.h"

enum { MAX_WORK = 100000 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t capacity);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t capacity, unsigned int seed);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    fprintf(stderr, "isas: %s\n", compared_isas());
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    (void)execute(data, size, MAX_WORK);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t capacity, unsigned int seed) {
    return mutate(data, size, capacity, seed, LLVMFuzzerMutate);
}
