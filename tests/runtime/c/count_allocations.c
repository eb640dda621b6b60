/* A library to preload (test_allocation.py): counts what the process allocates, and how many bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

static atomic_long allocations, bytes;

long counted_allocations(void);
long counted_bytes(void);
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static void count(size_t size) {
    atomic_fetch_add(&allocations, 1);
    atomic_fetch_add(&bytes, (long)size);
}

long counted_allocations(void) {
    return atomic_load(&allocations);
}

long counted_bytes(void) {
    return atomic_load(&bytes);
}

void *malloc(size_t size) {
    count(size);
    return __libc_malloc(size);
}

void *calloc(size_t number, size_t size) {
    count(number * size);
    return __libc_calloc(number, size);
}

void *realloc(void *old, size_t size) {
    count(size);
    return __libc_realloc(old, size);
}

void *memalign(size_t alignment, size_t size);
void *memalign(size_t alignment, size_t size) {
    count(size);
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    return memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size);
int posix_memalign(void **memory, size_t alignment, size_t size) {
    *memory = memalign(alignment, size);
    return *memory == NULL;
}

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset) {
    static void *(*next)(void *, size_t, int, int, int, off_t);
    if (next == NULL) {
        void *symbol = dlsym(RTLD_NEXT, "mmap");
        memcpy(&next, &symbol, sizeof next);
    }
    count(size);
    return next(address, size, protection, flags, file, offset);
}
