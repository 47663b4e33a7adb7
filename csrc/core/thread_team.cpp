#include "thread_team.h"

#include <unistd.h>

namespace sacfast {

ThreadTeam::ThreadTeam(int threads) : size_(threads), process_(getpid()) {
  try {
    for (int index = 1; index < threads; ++index) threads_.emplace_back([this, index] { serve(index); });
  } catch (...) {
    stop();  // those that did start
    throw;
  }
}

ThreadTeam::~ThreadTeam() {
  if (getpid() != process_) {
    for (std::thread& thread : threads_) thread.detach();
    return;
  }
  stop();
}

void ThreadTeam::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::run(const std::function<void(int)>& job) {
  if (size_ == 1) {
    job(0);
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    job_ = &job;
    working_ = size_ - 1;
    ++jobs_;
  }
  changed_.notify_all();
  job(0);
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return working_ == 0; });
  job_ = nullptr;
}

void ThreadTeam::serve(int index) {
  unsigned seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || jobs_ != seen; });
    if (stopping_) return;
    seen = jobs_;
    const std::function<void(int)>& job = *job_;
    lock.unlock();
    job(index);
    lock.lock();
    if (--working_ == 0) changed_.notify_all();
  }
}

}  // namespace sacfast
