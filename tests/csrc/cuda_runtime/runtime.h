// A stand-in for the CUDA runtime: streams, events, graphs and memory on the host, for the code that drives a GPU.
//
// Work that is queued runs when something waits for it, or at once (`Order`): both are legal on a GPU, and code that is
// right under one alone lacks an order. Vector clocks find an order that is missing even where the numbers came out
// right. What is illegal, or undefined on a GPU, is reported by name. A kernel counts as a writer of every allocation
// that one of its parameters points to, unless that was allocated read-only; what the nodes of one graph do to each
// other is not looked at (the order in which they run differs, though).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace standin {

// When work runs: at once; or when it is waited for, and of a graph's nodes the last one first that may run.
enum class Order { kAtOnce, kLate };

// Forgets all memory, reports and errors. What was made before must be gone.
void reset(Order order);

// What was found since: one line each.
const std::vector<std::string>& reports();

// The `nth` call (1: the next) of a function of the runtime, or of "launch", does nothing but return `error`.
void fail(const std::string& function, int nth, cudaError_t error);

// Streams, events, graphs and host memory that nobody has given back.
int alive();

// Memory of the GPU, filled with bytes 0xff.
void* allocate(std::int64_t bytes, bool read_only = false);
// Gives it back as torch does: from here on it is free for what is queued on `stream`, where it was allocated.
void release(void* memory, cudaStream_t stream);

// Starts a kernel; `work` is what it does. Returns what cudaGetLastError would.
cudaError_t launch(cudaStream_t stream, const std::string& name, const void* parameters, std::size_t bytes,
                   std::function<void()> work);

// Runs one piece of work of each stream in turns, until all is done.
void run_in_turns();

}  // namespace standin
