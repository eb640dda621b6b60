// The threads that the Python binding shares a run among (runtime/threads.h), for ThreadSanitizer: many short tasks, pauses
// long enough to fall asleep in, pools that end while their threads still look for work, several pools at once.
#include "threads.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace {

struct Sum {
    static constexpr size_t kCount = 1000;
    size_t parts;
    size_t values[kCount]; // each written by one thread, without a lock
};

void add(void *argument, size_t thread) {
    auto *sum = static_cast<Sum *>(argument);
    for (size_t i = thread; i < Sum::kCount; i += sum->parts) {
        sum->values[i]++;
    }
}

void rounds(size_t num_threads, size_t count, bool sleeps) {
    Threads threads(num_threads);
    Sum sum{num_threads, {}};
    for (size_t i = 0; i < count; i++) {
        threads.run(add, &sum);
        if (sleeps && i % 50 == 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    }
    for (size_t value : sum.values) {
        if (value != count) {
            std::fprintf(stderr, "%zu threads: %zu, not %zu\n", num_threads, value, count);
            std::exit(1);
        }
    }
}

} // namespace

int main() {
    for (size_t num_threads = 1; num_threads <= 4; num_threads++) {
        rounds(num_threads, 300, false);
        rounds(num_threads, 200, true);
        for (int i = 0; i < 20; i++) {
            rounds(num_threads, static_cast<size_t>(i % 2), false); // ends at once
        }
    }
    std::thread other([] { rounds(2, 300, true); });
    rounds(3, 300, true);
    other.join();
    std::puts("done");
}
