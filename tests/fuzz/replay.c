/* The fuzzer's property without libFuzzer, for any compiler.
 *
 *     replay files PATH...                each file, once
 *     replay bytes PATH COUNT SEED        COUNT copies of a file with random changes of bytes; half of them with the
 *                                         right size and checksum
 *     replay structure PATH COUNT SEED    COUNT mutants that know the file's structure, each made from the last one
 *                                         that opened (from the file again after some)
 *
 * Prints one line for each of lil_open's statuses that came: the status, how many; then "ran N", "finite N" and "isas NAME...". Ends with an
 * error where the property of execute.c fails; the last mutant is then in the file `last` of the working folder. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "execute.h"
#include "mutate.h"

enum { CAPACITY = 1 << 20 };
static const uint64_t MAX_WORK = 20 * 1000 * 1000;

static unsigned long counts[LIL_STATUS_COUNT], ran, finite;

static lil_status note(const uint8_t *data, size_t size) {
    const execution done = execute(data, size, MAX_WORK);
    counts[done.status]++;
    ran += done.ran;
    finite += done.finite;
    return done.status;
}

static size_t read_file(const char *path, uint8_t *data) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(2);
    }
    const size_t size = fread(data, 1, CAPACITY, file);
    fclose(file);
    return size;
}

static void keep(const uint8_t *data, size_t size) {
    FILE *file = fopen("last", "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        fprintf(stderr, "last: cannot be written\n");
        exit(2);
    }
}

static void mutants(const char *how, const char *path, unsigned long count, uint64_t seed) {
    static uint8_t good[CAPACITY], parent[CAPACITY], data[CAPACITY];
    const size_t good_size = read_file(path, good);
    const bool bytes = strcmp(how, "bytes") == 0;
    size_t parent_size = 0;
    for (unsigned long i = 0; i < count; i++) {
        if (bytes || i % 64 == 0) {
            memcpy(parent, good, parent_size = good_size);
        }
        memcpy(data, parent, parent_size);
        size_t size;
        if (bytes) {
            fuzz_seed(seed + i);
            size = change_some_bytes(data, parent_size, sizeof data);
            if (i % 2 == 0 && size >= sizeof(lil_header)) {
                seal(data, size);
            }
        } else {
            size = mutate(data, parent_size, 1 << 14, seed + i, change_some_bytes);
        }
        keep(data, size);
        if (note(data, size) == LIL_OK && !bytes) {
            memcpy(parent, data, parent_size = size);
        }
    }
    remove("last");
}

int main(int argc, char **argv) {
    if (argc >= 3 && strcmp(argv[1], "files") == 0) {
        static uint8_t data[CAPACITY];
        for (int i = 2; i < argc; i++) {
            note(data, read_file(argv[i], data));
        }
    } else if (argc == 5 && (strcmp(argv[1], "bytes") == 0 || strcmp(argv[1], "structure") == 0)) {
        mutants(argv[1], argv[2], strtoul(argv[3], NULL, 10), strtoull(argv[4], NULL, 10));
    } else {
        fprintf(stderr, "replay files PATH... | replay bytes|structure PATH COUNT SEED\n");
        return 2;
    }
    for (int status = 0; status < LIL_STATUS_COUNT; status++) {
        if (counts[status] > 0) {
            printf("%d %lu %s\n", status, counts[status], lil_status_message((lil_status)status));
        }
    }
    printf("ran %lu\nfinite %lu\nisas %s\n", ran, finite, compared_isas());
    return 0;
}
