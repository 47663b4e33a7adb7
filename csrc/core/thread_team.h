// A fixed number of threads that carry out one job together: awake and spinning while it lasts, asleep in between.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace sacfast {

template <class Condition>
void spin_until(const Condition& condition) {
  constexpr int many = 2000;  // about 0.1 ms
  for (int spins = 0; !condition(); ++spins) {
    if (spins >= many) {
      std::this_thread::yield();  // more threads than cores: the one that is waited for may need this core
      continue;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// Where all threads of a team wait for each other.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads), waiting_for_(threads) {}

  // The last thread to arrive calls `last` before any of them goes on, and all see what it wrote.
  template <class Last>
  void meet(const Last& last) {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (waiting_for_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      last();
      waiting_for_.store(threads_, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
  }

 private:
  const int threads_;
  alignas(64) std::atomic<int> waiting_for_;
  alignas(64) std::atomic<unsigned> round_{0};
};

// Where threads wait until all of a team have passed, once a round; each may do something else in between.
class Gate {
 public:
  explicit Gate(int threads) : threads_(threads) {}

  void pass() { passed_.fetch_add(1, std::memory_order_release); }

  // Until all have passed in this round and in those before; `rounds` counts from 1.
  void wait(std::int64_t rounds) const {
    spin_until([&] { return passed_.load(std::memory_order_acquire) >= rounds * threads_; });
  }

  // For the first round again; no thread may be using it.
  void reset() { passed_.store(0, std::memory_order_relaxed); }

 private:
  const int threads_;
  alignas(64) std::atomic<std::int64_t> passed_{0};
};

class ThreadTeam {
 public:
  // The calling thread of `run` is one of `threads`; the others start here. Throws std::system_error if one cannot.
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }

  // Calls job(0) here and job(1) ... job(size - 1) on the others; returns when all have. `job` must not throw.
  void run(const std::function<void(int)>& job);

 private:
  void serve(int index);
  void stop();

  const int size_;
  const int process_;  // threads do not survive a fork: in a child there is nothing to join
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void(int)>* job_ = nullptr;
  unsigned jobs_ = 0;
  int working_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace sacfast
