/* The property that every input of the fuzzer must have: see execute.c. */
#ifndef LIL_FUZZ_EXECUTE_H
#define LIL_FUZZ_EXECUTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lil.h"

/* What one execution did. */
typedef struct execution {
    lil_status status; /* lil_open's */
    bool ran;          /* opened, small enough, and run */
    bool finite;       /* and no output is NaN or infinite */
} execution;

/* Open the bytes and, where that succeeds and one run takes at most `max_work` multiplications or so, run them on every
 * instruction set of this machine and with a team. Ends the process, with a line on stderr, where a property fails. */
execution execute(const uint8_t *data, size_t size, uint64_t max_work);

/* "scalar avx2 ...": the instruction sets that `execute` compares. */
const char *compared_isas(void);

#endif
