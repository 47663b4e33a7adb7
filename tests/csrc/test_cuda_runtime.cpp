// The stand-in for the CUDA runtime itself: it finds what it is there to find. And noise that two streams share.
//
// Compiled with tests/csrc/cuda_runtime/*.cpp and the headers of a CUDA toolkit.
//
// Exits with 1 if a check fails.
#include <functional>
#include <string>

#include "cuda_runtime/runtime.h"
#include "expect.h"
#include "ops/tanh_gaussian/tanh_gaussian_kernels.h"

namespace {

using standin::Order;

constexpr std::int64_t kBytes = 64;

struct Fixture {
  cudaStream_t first = nullptr, second = nullptr;
  cudaEvent_t event = nullptr;
  int* memory;

  explicit Fixture(Order order = Order::kLate) {
    standin::reset(order);
    for (cudaStream_t* each : {&first, &second}) cudaStreamCreateWithFlags(each, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    memory = static_cast<int*>(standin::allocate(kBytes));
  }
  ~Fixture() {
    for (const cudaStream_t each : {first, second}) cudaStreamDestroy(each);
    cudaEventDestroy(event);
  }

  cudaError_t write(cudaStream_t stream, int value) const {
    int* const to = memory;
    return standin::launch(stream, "writer", &memory, sizeof memory, [to, value] { *to = value; });
  }
};

bool reported(const std::string& text) {
  for (const std::string& each : standin::reports()) {
    if (each.find(text) != std::string::npos) return true;
  }
  std::printf("not reported: %s\n", text.c_str());
  return false;
}

void check_order() {
  for (const Order order : {Order::kAtOnce, Order::kLate}) {
    int found = 0;
    {
      const Fixture no_order(order);
      no_order.write(no_order.first, 7);
      cudaMemcpyAsync(&found, no_order.memory, sizeof found, cudaMemcpyDefault, no_order.second);
      cudaStreamSynchronize(no_order.second);
      EXPECT(found == (order == Order::kLate ? -1 : 7));
      EXPECT(reported("a copy is not ordered behind writer"));
    }
    const Fixture in_order(order);
    in_order.write(in_order.first, 8);
    cudaEventRecord(in_order.event, in_order.first);
    in_order.write(in_order.first, 9);  // behind the event
    cudaStreamSynchronize(in_order.first);
    in_order.write(in_order.first, 10);
    cudaEventRecord(in_order.event, in_order.first);
    cudaStreamWaitEvent(in_order.second, in_order.event, 0);
    cudaMemcpyAsync(&found, in_order.memory, sizeof found, cudaMemcpyDefault, in_order.second);
    cudaStreamSynchronize(in_order.second);
    EXPECT(found == 10);
    EXPECT(standin::reports().empty());
  }
  const Fixture too_early;  // the event does not cover the second write
  too_early.write(too_early.first, 1);
  cudaEventRecord(too_early.event, too_early.first);
  too_early.write(too_early.first, 2);
  cudaStreamWaitEvent(too_early.second, too_early.event, 0);
  EXPECT(standin::reports().empty());
  too_early.write(too_early.second, 3);
  EXPECT(reported("writer is not ordered behind writer"));
}

void check_lifetimes() {
  {
    const Fixture pending;
    pending.write(pending.second, 1);
    standin::release(pending.memory, pending.first);
    EXPECT(reported("memory is released while writer may use it"));
  }
  {
    const Fixture own_stream;
    own_stream.write(own_stream.first, 1);
    standin::release(own_stream.memory, own_stream.first);
    EXPECT(standin::reports().empty());
  }
  const Fixture full;
  for (int i = 0; i <= 1000; ++i) full.write(full.first, i);
  EXPECT(reported("its queue is full"));
}

void check_captures() {
  const Fixture fixture;
  cudaGraph_t graph = nullptr;
  const auto record = [&](const std::function<void()>& body) {
    cudaStreamBeginCapture(fixture.first, cudaStreamCaptureModeThreadLocal);
    body();
    const cudaError_t error = cudaStreamEndCapture(fixture.first, &graph);
    cudaGetLastError();
    EXPECT((error == cudaSuccess) == (graph != nullptr));
    return error;
  };
  const auto fork = [&] {
    fixture.write(fixture.first, 1);
    cudaEventRecord(fixture.event, fixture.first);
    cudaStreamWaitEvent(fixture.second, fixture.event, 0);
    fixture.write(fixture.second, 2);
  };
  EXPECT(record(fork) == cudaErrorStreamCaptureUnjoined);
  EXPECT(record([&] {
           void* memory = nullptr;
           EXPECT(cudaHostAlloc(&memory, 8, 0) == cudaErrorStreamCaptureUnsupported);
         }) == cudaErrorStreamCaptureInvalidated);
  EXPECT(reported("cudaHostAlloc is called while a graph is recorded"));
  EXPECT(record([&] { cudaEventQuery(fixture.event); }) == cudaErrorStreamCaptureInvalidated);
  EXPECT(record([&] { cudaStreamSynchronize(fixture.second); }) == cudaErrorStreamCaptureInvalidated);
  record([&] { EXPECT(fixture.write(nullptr, 1) == cudaErrorStreamCaptureImplicit); });
  EXPECT(reported("on the default stream"));
  if (graph != nullptr) cudaGraphDestroy(graph);
  EXPECT(record([&] {
           fork();
           cudaEventRecord(fixture.event, fixture.second);
           cudaStreamWaitEvent(fixture.first, fixture.event, 0);
         }) == cudaSuccess);
  cudaStreamWaitEvent(fixture.second, fixture.event, 0);
  EXPECT(reported("a stream waits for an event of another capture"));
  cudaGraphExec_t ready = nullptr;
  cudaGraphInstantiate(&ready, graph, 0);
  cudaGetLastError();
  cudaGraphLaunch(ready, fixture.first);
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  EXPECT(reported("a graph is destroyed while it may run"));
}

void check_errors() {
  const Fixture fixture;
  standin::fail("cudaEventRecord", 2, cudaErrorMemoryAllocation);
  EXPECT(cudaEventRecord(fixture.event, fixture.first) == cudaSuccess);
  EXPECT(cudaEventRecord(fixture.event, fixture.first) == cudaErrorMemoryAllocation);
  EXPECT(fixture.write(fixture.first, 1) == cudaErrorMemoryAllocation);
  EXPECT(reported("writer is blamed for the error of an earlier call"));
  EXPECT(fixture.write(fixture.first, 1) == cudaSuccess);
}

// Two streams draw from one state at the same time: none draws what the other drew.
void check_shared_noise() {
  using namespace sacfast::SACFAST_ISA;
  const Fixture fixture;
  std::int64_t state[2] = {5, 40}, taken[2][2], drawn[2] = {};
  int which = 0;
  for (const cudaStream_t stream : {fixture.first, fixture.second}) {
    std::int64_t* const mine = taken[which];
    std::int64_t* const to = &drawn[which++];
    standin::launch(stream, "take", nullptr, 0, [&state, mine] {
      TakeNoise::Shared shared;
      TakeNoise{state, mine}(Block{0, 0}, shared);
    });
    standin::launch(stream, "sample", nullptr, 0, [mine, to] { *to = mine[1]; });
  }
  standin::run_in_turns();
  EXPECT(drawn[0] + drawn[1] == 81 && drawn[0] != drawn[1]);
  EXPECT(state[1] == 42 && taken[0][0] == 5 && taken[1][0] == 5);
}

}  // namespace

int main() {
  check_order();
  check_lifetimes();
  check_captures();
  check_errors();
  check_shared_noise();
  return report();
}
