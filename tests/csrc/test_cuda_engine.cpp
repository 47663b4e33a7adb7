// The engine's host side on a GPU (csrc/update/gpu/{cuda_machine,engine}.h), driven on a stand-in for the CUDA runtime:
// order between streams, graphs, memory, and calls that the GPU refuses. Its kernels run on the host.
//
// Compiled with tests/csrc/cuda_runtime/*.cpp and the headers of a CUDA toolkit.
//
// Exits with 1 if a check fails.
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#include "cuda_runtime/runtime.h"
#include "expect.h"
#include "host_machine.h"
#include "update/gpu/cuda_machine.h"
#include "update/gpu/engine.h"
#include "update_cases.h"

namespace sacfast::SACFAST_ISA {
namespace {

using standin::Order;

struct Launch {
  template <class Kernel>
  static cudaError_t run(const Kernel& body, dim3 grid, cudaStream_t stream) {
    return standin::launch(stream, typeid(Kernel).name(), &body, sizeof body,
                           [body, grid] { HostMachine().launch(Lane::kMain, body, grid.x, static_cast<int>(grid.y)); });
  }
};
using Engine = GpuEngine<float, CudaMachine<Launch>>;

class Stream {
 public:
  Stream() { cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Learners on the stand-in, and each of them alone on the host, who makes the same updates at once.
class Pair {
 public:
  explicit Pair(UpdateSettings settings, int learners = 1)
      : settings_(std::move(settings)), transitions_(settings_, 5) {
    memory_ = static_cast<char*>(standin::allocate(Engine::bytes(settings_, learners)));
    engine_.emplace(settings_, learners, memory_, static_cast<cudaStream_t>(home_), CudaMachine<Launch>());
    for (int i = 0; i < learners; ++i) {
      twins_.push_back(std::make_unique<Twin>(settings_));
      start<float>(twins_.back()->engine, settings_, static_cast<std::uint64_t>(i + 1));
      engine_->select(i);
      start<float>(*engine_, settings_, static_cast<std::uint64_t>(i + 1));
    }
  }
  ~Pair() {
    engine_.reset();  // with work under way, perhaps
    standin::release(memory_, home_);
  }

  // Queues the learners' updates on a stream, with row `bad` (if it is one) in the second minibatch of learner 0.
  // `refused`: what the GPU says to some of it; the twins then make `made` updates.
  void update(cudaStream_t stream, const std::vector<std::int64_t>& steps, const std::string& refused = "",
              std::int64_t made = 0, std::optional<std::int64_t> bad = std::nullopt) {
    QueuedCall<float> call;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      indices_.push_back(index_of(steps[i], settings_.batch_size, static_cast<std::int64_t>(indices_.size())));
      std::vector<std::int64_t>& index = indices_.back();
      std::int64_t count = refused.empty() ? steps[i] : std::min(steps[i], made);
      if (bad.has_value() && i == 0) {
        index[static_cast<std::size_t>(settings_.batch_size)] = *bad;
        count = std::min<std::int64_t>(count, 1);
      }
      call.work.push_back(queued(transitions_, index, steps[i]));
      call.work.back().capacity = kTransitions;
      twins_[i]->engine.update(work_of<float>(transitions_, index, count));
    }
    engine_->use_queue(stream);
    std::string error;
    try {
      engine_->enqueue(call);
    } catch (const std::runtime_error& caught) {
      error = caught.what();
    }
    if (error.find(refused) == std::string::npos || error.empty() != refused.empty()) {
      std::printf("expected '%s', got '%s'\n", refused.c_str(), error.c_str());
      ++failures;
    }
  }

  // Every learner, asked for on `stream`, is as its twin.
  void expect_same(cudaStream_t stream) {
    engine_->use_queue(stream);
    for (std::size_t i = 0; i < twins_.size(); ++i) {
      engine_->select(static_cast<int>(i));
      EXPECT(state_of<float>(*engine_, settings_) == state_of<float>(twins_[i]->engine, settings_));
    }
  }

  Engine& engine() { return *engine_; }
  const Stream& home() const { return home_; }

 private:
  struct Twin {
    std::vector<char> memory;
    GpuEngine<float, HostMachine> engine;
    explicit Twin(const UpdateSettings& settings)
        : memory(static_cast<std::size_t>(GpuEngine<float, HostMachine>::bytes(settings, 1))),
          engine(settings, 1, memory.data(), nullptr, HostMachine()) {}
  };

  UpdateSettings settings_;
  Transitions transitions_;
  Stream home_;
  char* memory_;
  std::optional<Engine> engine_;
  std::vector<std::unique_ptr<Twin>> twins_;
  std::vector<std::vector<std::int64_t>> indices_;  // which stay until the work is done
};

UpdateSettings small() { return settings_of({9, 6}, 4); }

// Runs a scenario in both orders; it leaves nothing, and nothing illegal was done.
void check(const char* name, const std::function<void()>& scenario) {
  for (const Order order : {Order::kAtOnce, Order::kLate}) {
    const int before = failures;
    standin::reset(order);
    scenario();
    for (const std::string& each : standin::reports()) std::printf("%s\n", each.c_str());
    EXPECT(standin::reports().empty());
    EXPECT(standin::alive() == 0);
    if (failures > before) std::printf("in '%s', work %s\n", name, order == Order::kLate ? "late" : "at once");
  }
}

void check_order() {
  check("updates of one stream", [] {
    for (const UpdateSettings& settings : {small(), v1(small()), settings_of({}, 3)}) {
      Pair pair(settings);
      for (const std::int64_t steps : {1, 1, 4, 3}) pair.update(pair.home(), {steps});
      pair.expect_same(pair.home());
    }
  });
  check("calls, reads and writes on streams of their own", [] {
    Pair pair(small());
    const Stream second, third, fourth;
    pair.update(pair.home(), {3});
    pair.update(second, {2});
    pair.expect_same(third);
    pair.update(fourth, {1});
    pair.update(pair.home(), {1});
    pair.expect_same(second);
  });
  check("the default stream", [] {
    Pair pair(small());
    pair.update(nullptr, {3});
    pair.update(pair.home(), {1});
    pair.expect_same(nullptr);
  });
  check("a stream that its owner has destroyed", [] {
    Pair pair(small());
    {
      const Stream brief;
      pair.update(brief, {3});
    }
    pair.update(pair.home(), {2});
    pair.expect_same(pair.home());
  });
  check("learners apart, and what settles them, on streams of their own", [] {
    Pair pair(small(), 2);
    const Stream second, third;
    pair.update(pair.home(), {3, 2});
    pair.update(second, {1, 4});
    pair.update(third, {2, 1});
    pair.expect_same(second);
    // The first fails at its second update; it stays a buffer behind, and is settled when that is known.
    pair.update(pair.home(), {4, 2}, "", 0, 99);
    EXPECT(pair.engine().collect()[0].fault == "index: expected rows in [0, 60), got 99");
    pair.update(second, {1, 1});
    pair.update(third, {1, 2});
    pair.expect_same(third);
  });
}

void check_waiting() {
  check("more work than a driver's queue holds", [] {
    Pair pair(settings_of({}, 1));
    pair.update(pair.home(), {1300});
    for (int i = 0; i < 600; ++i) pair.update(pair.home(), {1});
    pair.expect_same(pair.home());
  });
  check("looking is free", [] {
    Pair pair(small());
    pair.update(pair.home(), {2});
    pair.engine().collect();
    pair.update(pair.home(), {1});
    // Neither copies, nor waits for a whole stream.
    for (const char* each : {"cudaMemcpyAsync", "cudaStreamSynchronize"}) standin::fail(each, 1, cudaErrorUnknown);
    pair.engine().is_done();
    EXPECT(pair.engine().collect()[0].gradient_updates == 3 + 3);
    EXPECT(pair.engine().is_done());
    standin::fail("cudaMemcpyAsync", 1, cudaSuccess);
    standin::fail("cudaStreamSynchronize", 1, cudaSuccess);
    pair.expect_same(pair.home());
  });
  check("an engine that goes while it works", [] {
    Pair pair(small());
    const Stream second;
    pair.update(pair.home(), {3});
    pair.update(second, {2});
  });
  standin::reset(Order::kLate);
  Pair pair(small());
  pair.update(pair.home(), {1});
  EXPECT(!pair.engine().is_done());
  pair.update(pair.home(), {1});  // a launch behind "not ready": that is no error of its
  pair.engine().collect();
  EXPECT(pair.engine().is_done());
  EXPECT(standin::reports().empty());
}

// The GPU refuses a part of a call: a named error, and what was queued before it counts.
void check_refused() {
  const std::string none = "failed: out of memory";
  for (int nth = 1; nth <= 4; ++nth) {
    check("an update that is refused", [&] {
      Pair pair(small(), 2);
      pair.update(pair.home(), {1, 2});
      standin::fail("cudaGraphLaunch", nth, cudaErrorMemoryAllocation);
      pair.update(pair.home(), {4, 2}, "cudaGraphLaunch", nth - 1);
      pair.update(pair.home(), {2, 3});
      pair.expect_same(pair.home());
    });
  }
  for (const char* function : {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate",
                               "cudaGraphUpload", "cudaEventRecord", "cudaStreamWaitEvent"}) {
    check(function, [&] {
      Pair pair(small());
      standin::fail(function, 1, cudaErrorMemoryAllocation);
      pair.update(pair.home(), {3}, none);
      pair.expect_same(pair.home());
      pair.update(pair.home(), {3});
      pair.expect_same(pair.home());
    });
  }
  for (const int nth : {1, 5, 20}) {
    check("a launch while an update is recorded", [&] {
      Pair pair(small());
      standin::fail("launch", nth, cudaErrorMemoryAllocation);
      pair.update(pair.home(), {3}, none);
      pair.update(pair.home(), {3});
      pair.expect_same(pair.home());
    });
  }
  check("the beginning of a call", [&] {
    Pair pair(small());
    pair.update(pair.home(), {2});
    standin::fail("launch", 1, cudaErrorMemoryAllocation);
    pair.update(pair.home(), {3}, none);
    pair.update(pair.home(), {3});
    pair.expect_same(pair.home());
  });
  check("the end of a call: the host cannot know what became of it, and says so", [&] {
    Pair pair(small());
    pair.update(pair.home(), {2});
    standin::fail("launch", 2, cudaErrorMemoryAllocation);
    pair.update(pair.home(), {3}, none);
    pair.update(pair.home(), {3}, "learner: the GPU refused a part of an earlier call");
  });
  for (const auto& [function, calls] : std::vector<std::pair<const char*, int>>{{"cudaStreamCreateWithFlags", 3},
                                                                                {"cudaEventCreateWithFlags", 4},
                                                                                {"cudaHostAlloc", 1},
                                                                                {"cudaMemsetAsync", 1}}) {
    for (int nth = 1; nth <= calls; ++nth) {
      check(function, [function = function, nth] {
        const Stream stream;
        void* const memory = standin::allocate(Engine::bytes(small(), 1));
        standin::fail(function, nth, cudaErrorMemoryAllocation);
        std::string error;
        try {
          Engine(small(), 1, static_cast<char*>(memory), static_cast<cudaStream_t>(stream), CudaMachine<Launch>());
        } catch (const std::runtime_error& caught) {
          error = caught.what();
        }
        EXPECT(error == std::string("learner: ") + error.substr(9) && error.find("out of memory") != std::string::npos);
        standin::release(memory, stream);
      });
    }
  }
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

int main() {
  using namespace sacfast::SACFAST_ISA;
  check_order();
  check_waiting();
  check_refused();
  return report();
}
