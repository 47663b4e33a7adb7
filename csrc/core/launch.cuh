// What every CUDA launcher needs: block shape, grid size, arithmetic type, and the check after a launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "block.h"

namespace sacfast::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// half and bfloat16 are storage only: arithmetic is done in float.
template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <class T>
using ArithmeticOf = typename Arithmetic<T>::type;

// Blocks for `work` units, at most as many as keep a large card busy: kernels walk the rest with a grid stride.
inline unsigned grid_size(std::int64_t work) {
  constexpr std::int64_t most = 132 * 16;
  return static_cast<unsigned>(work < most ? work : most);
}

inline cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

// Called right after a launch; the bindings turn the code into an exception that names the op.
inline int launch_status() { return static_cast<int>(cudaGetLastError()); }

template <class Body>
__global__ void __launch_bounds__(SACFAST_ISA::kBlockThreads) block_kernel(const Body body, std::int64_t blocks) {
  __shared__ typename Body::Shared shared;
  for (std::int64_t i = blockIdx.x; i < blocks; i += gridDim.x) body(SACFAST_ISA::Block{i, 0}, shared);
}

// Runs a body of phases (core/block.h) for `blocks` blocks.
template <class Body>
int launch_blocks(const Body& body, std::int64_t blocks, void* stream) {
  block_kernel<<<grid_size(blocks), SACFAST_ISA::kBlockThreads, 0, as_stream(stream)>>>(body, blocks);
  return launch_status();
}

}  // namespace sacfast::cuda
