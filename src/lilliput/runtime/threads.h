// Threads that share one run: what the binding hands to the core as lil_team.
#ifndef LIL_THREADS_H
#define LIL_THREADS_H

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

// `num_threads - 1` threads that wait for work; the caller of run() is the first. One run() at a time.
class Pool {
  public:
    explicit Pool(size_t num_threads) : count_(num_threads) {
        try {
            for (size_t thread = 1; thread < count_; thread++) {
                workers_.emplace_back([this, thread] { serve(thread); });
            }
        } catch (...) {
            stop();
            throw;
        }
    }
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;
    ~Pool() { stop(); }

    // task(argument, t) for each t in 0..num_threads-1; returns when all are done.
    void run(void (*task)(void *, size_t), void *argument) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            task_ = task;
            argument_ = argument;
            left_.store(count_ - 1, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        task(argument, 0);
        for (size_t spins = 0; left_.load(std::memory_order_acquire) != 0; spins++) {
            spins < kSpins ? pause() : std::this_thread::yield();
        }
    }

  private:
    static constexpr size_t kSpins = 2000; // up to some hundred microseconds: the gap between two ops is far shorter

    static void pause() {
#if defined(__x86_64__) || defined(_M_X64)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    void serve(size_t thread) {
        for (size_t seen = 0;;) {
            for (size_t spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; spins++) {
                pause();
            }
            if (round_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
            }
            seen++;
            if (stopping_.load(std::memory_order_relaxed)) {
                return;
            }
            task_(argument_, thread);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_.store(true, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (std::thread &worker : workers_) {
            worker.join();
        }
    }

    const size_t count_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<size_t> round_{0};
    std::atomic<size_t> left_{0};
    std::atomic<bool> stopping_{false};
    void (*task_)(void *, size_t) = nullptr;
    void *argument_ = nullptr;
    std::vector<std::thread> workers_; // last: they use all of the above
};

// The same, in a process and in those that fork from it: there the threads are the parent's, and tasks run one after
// another.
class Threads {
  public:
    explicit Threads(size_t num_threads) : count_(num_threads), process_(process()), pool_(new Pool(num_threads)) {}
    Threads(const Threads &) = delete;
    Threads &operator=(const Threads &) = delete;
    ~Threads() {
        if (process() == process_) { // else nothing may be destroyed: a condition waits for its waiters
            delete pool_;
        }
    }

    size_t size() const { return count_; }

    void run(void (*task)(void *, size_t), void *argument) {
        if (process() == process_) {
            pool_->run(task, argument);
            return;
        }
        for (size_t thread = 0; thread < count_; thread++) {
            task(argument, thread);
        }
    }

  private:
    static long process() {
#if defined(_WIN32)
        return 0;
#else
        return static_cast<long>(getpid());
#endif
    }

    const size_t count_;
    const long process_;
    Pool *const pool_;
};

#endif
