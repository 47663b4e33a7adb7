// CUDA twin. A block walks tiles of up to 1,024 elements: several whole rows, or a part of a long row.
#include "tanh_gaussian.h"

#include <type_traits>

#include "../../core/launch.cuh"
#include "../../core/philox.h"
#include "tanh_gaussian_kernels.h"

namespace sacfast::cuda {
namespace {

using namespace sacfast::SACFAST_ISA;

constexpr int kTile = 1024;

// How a matrix [rows, cols] is cut. For cols > kTile a block takes a whole row, part by part, so that it alone
// owns the row's sum.
struct Tiling {
  std::int64_t rows, cols;
  std::int64_t rows_per_tile;
  std::int64_t tiles;
};

Tiling tiling_of(std::int64_t rows, std::int64_t cols) {
  const std::int64_t fitting = cols > kTile ? 1 : (cols > 0 ? kTile / cols : kTile);
  // A multiple of 64 rows makes a tile start on a noise group, so that no noise is computed twice.
  const std::int64_t rows_per_tile = fitting >= 64 ? fitting / 64 * 64 : fitting;
  return {rows, cols, rows_per_tile, (rows + rows_per_tile - 1) / rows_per_tile};
}

template <class Acc, class T>
__device__ Acc read(const Strided<T>& view, std::int64_t row, std::int64_t col) {
  return static_cast<Acc>(element(view, row, col));
}

// Calls body(index in the tile, row, col) for the tile's elements, shared among the block's threads.
template <class Body>
__device__ void for_each_element(std::int64_t row, int rows, std::int64_t col, int cols, Body body) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * cols; i += kThreads) {
    const int r = i / cols;
    body(i, row + r, col + (i - r * cols));
  }
}

// Calls body(row, rows, col, cols) for this block's tiles.
template <class Body>
__device__ void for_each_tile_of_block(const Tiling& tiling, Body body) {
  for (std::int64_t tile = blockIdx.x; tile < tiling.tiles; tile += gridDim.x) {
    const std::int64_t row = tile * tiling.rows_per_tile;
    const std::int64_t rows_left = tiling.rows - row;
    const int rows = static_cast<int>(rows_left < tiling.rows_per_tile ? rows_left : tiling.rows_per_tile);
    for (std::int64_t col = 0; col < tiling.cols; col += kTile) {
      const std::int64_t cols_left = tiling.cols - col;
      body(row, rows, col, static_cast<int>(cols_left < kTile ? cols_left : kTile));
    }
  }
}

// The noise of elements [first, first + count) into shared memory: a thread computes whole counters.
template <class Acc>
__device__ void draw_noise(std::int64_t first, int count, const NoiseSource& source, Acc* noise) {
  const std::int64_t first_group = first / kNoiseGroup;
  const std::int64_t last_group = (first + count - 1) / kNoiseGroup;
  const int counters = static_cast<int>(last_group - first_group + 1) * kNoiseLanes;
  for (int i = static_cast<int>(threadIdx.x); i < counters; i += kThreads) {
    const std::int64_t counter = first_group * kNoiseLanes + i;
    Acc four[4];
    normals_of_counter<Acc>(static_cast<std::uint64_t>(counter), source.seed, source.offset, four);
    const std::int64_t base = counter / kNoiseLanes * kNoiseGroup + counter % kNoiseLanes - first;
    for (int output = 0; output < 4; ++output) {
      const std::int64_t at = base + 16 * output;
      if (at >= 0 && at < count) noise[at] = four[output];
    }
  }
}

// sums[row] (+)= the row's elements in shared memory: a thread a row when rows are short, else a warp a row.
template <class Acc, class T>
__device__ void add_row_sums(const Acc* elements, std::int64_t row, int rows, std::int64_t col, int cols, Acc* carry,
                             bool last_part, T* sums) {
  if (cols <= kWarp && col == 0) {
    for (int r = static_cast<int>(threadIdx.x); r < rows; r += kThreads) {
      Acc sum = 0;
      for (int c = 0; c < cols; ++c) sum += elements[r * cols + c];
      sums[row + r] = static_cast<T>(sum);
    }
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < rows; r += kThreads / kWarp) {
    Acc sum = 0;
    for (int c = lane; c < cols; c += kWarp) sum += elements[r * cols + c];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (lane == 0) {
      // Only a row longer than a tile has a carry, and such a tile holds one row, summed by one warp.
      if (col != 0) sum += *carry;
      if (last_part) {
        sums[row + r] = static_cast<T>(sum);
      } else {
        *carry = sum;
      }
    }
  }
}

template <LogStdBounding kBounding, class T>
__global__ void __launch_bounds__(kThreads) rsample_kernel(RsampleParams<T> p, Tiling tiling) {
  using Acc = ArithmeticOf<T>;
  __shared__ Acc noise[kTile];
  __shared__ Acc log_prob[kTile];
  __shared__ Acc carry;
  const NoiseSource source = resolve(p.source);
  const Acc low = static_cast<Acc>(p.bounds.low), high = static_cast<Acc>(p.bounds.high);
  for_each_tile_of_block(tiling, [&](std::int64_t row, int rows, std::int64_t col, int cols) {
    const std::int64_t first = row * p.cols + col;
    if (p.noise.data == nullptr) {
      draw_noise(first, rows * cols, source, noise);
      __syncthreads();
    }
    for_each_element(row, rows, col, cols, [&](int i, std::int64_t r, std::int64_t c) {
      const Acc e = p.noise.data != nullptr ? read<Acc>(p.noise, r, c) : noise[i];
      const Acc log_std = bound_log_std<kBounding>(read<Acc>(p.log_std, r, c), low, high).value;
      Sample<Acc> sample = sample_element(read<Acc>(p.mean, r, c), log_std, e);
      if (p.action_scale != nullptr) {
        const Acc scale = static_cast<Acc>(p.action_scale[c]);
        sample.action *= scale;
        sample.log_prob -= natural_log(absolute(scale));
      }
      p.action[first + i] = static_cast<T>(sample.action);
      if (p.noise_out != nullptr) p.noise_out[first + i] = static_cast<T>(e);
      log_prob[i] = sample.log_prob;
    });
    __syncthreads();
    add_row_sums(log_prob, row, rows, col, cols, &carry, col + cols == p.cols, p.log_prob);
    __syncthreads();
  });
}

template <LogStdBounding kBounding, class T>
__global__ void __launch_bounds__(kThreads) rsample_backward_kernel(RsampleBackwardParams<T> p, Tiling tiling) {
  using Acc = ArithmeticOf<T>;
  const Acc low = static_cast<Acc>(p.bounds.low), high = static_cast<Acc>(p.bounds.high);
  for_each_tile_of_block(tiling, [&](std::int64_t row, int rows, std::int64_t col, int cols) {
    const std::int64_t first = row * p.cols + col;
    for_each_element(row, rows, col, cols, [&](int i, std::int64_t r, std::int64_t c) {
      const LogStd<Acc> bounded = bound_log_std<kBounding>(read<Acc>(p.log_std, r, c), low, high);
      Acc grad_action = p.grad_action.data != nullptr ? read<Acc>(p.grad_action, r, c) : Acc(0);
      if (p.action_scale != nullptr) grad_action *= static_cast<Acc>(p.action_scale[c]);
      const Acc grad_log_prob = p.grad_log_prob.data != nullptr ? read<Acc>(p.grad_log_prob, r, c) : Acc(0);
      const MeanLogStdGrad<Acc> grad = sample_element_backward(grad_action, grad_log_prob, read<Acc>(p.mean, r, c),
                                                               bounded.value, read<Acc>(p.noise, r, c));
      p.grad_mean[first + i] = static_cast<T>(grad.mean);
      p.grad_log_std[first + i] = static_cast<T>(grad.log_std * bounded.slope);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) log_prob_kernel(LogProbParams<T> p, Tiling tiling) {
  using Acc = ArithmeticOf<T>;
  __shared__ Acc log_prob[kTile];
  __shared__ Acc carry;
  for_each_tile_of_block(tiling, [&](std::int64_t row, int rows, std::int64_t col, int cols) {
    for_each_element(row, rows, col, cols, [&](int i, std::int64_t r, std::int64_t c) {
      log_prob[i] = log_prob_element(read<Acc>(p.pre_tanh, r, c), read<Acc>(p.mean, r, c), read<Acc>(p.log_std, r, c));
    });
    __syncthreads();
    add_row_sums(log_prob, row, rows, col, cols, &carry, col + cols == p.cols, p.log_prob);
    __syncthreads();
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) log_prob_backward_kernel(LogProbBackwardParams<T> p, Tiling tiling) {
  using Acc = ArithmeticOf<T>;
  for_each_tile_of_block(tiling, [&](std::int64_t row, int rows, std::int64_t col, int cols) {
    const std::int64_t first = row * p.cols + col;
    for_each_element(row, rows, col, cols, [&](int i, std::int64_t r, std::int64_t c) {
      const LogProbGrad<Acc> grad =
          log_prob_element_backward(read<Acc>(p.grad_log_prob, r, c), read<Acc>(p.pre_tanh, r, c),
                                    read<Acc>(p.mean, r, c), read<Acc>(p.log_std, r, c));
      p.grad_pre_tanh[first + i] = static_cast<T>(grad.z);
      p.grad_mean[first + i] = static_cast<T>(grad.mean);
      p.grad_log_std[first + i] = static_cast<T>(grad.log_std);
    });
  });
}

}  // namespace

template <class T>
int tanh_gaussian_rsample(const RsampleParams<T>& params, void* stream) {
  const Tiling tiling = tiling_of(params.rows, params.cols);
  const unsigned grid = grid_size(tiling.tiles);
  switch (params.bounds.kind) {
    case LogStdBounding::kNone:
      rsample_kernel<LogStdBounding::kNone><<<grid, kThreads, 0, as_stream(stream)>>>(params, tiling);
      break;
    case LogStdBounding::kClamp:
      rsample_kernel<LogStdBounding::kClamp><<<grid, kThreads, 0, as_stream(stream)>>>(params, tiling);
      break;
    case LogStdBounding::kTanh:
      rsample_kernel<LogStdBounding::kTanh><<<grid, kThreads, 0, as_stream(stream)>>>(params, tiling);
      break;
  }
  return launch_status();
}

template <class T>
int tanh_gaussian_rsample_backward(const RsampleBackwardParams<T>& params, void* stream) {
  const Tiling tiling = tiling_of(params.rows, params.cols);
  const unsigned grid = grid_size(tiling.tiles);
  switch (params.bounds.kind) {
    case LogStdBounding::kNone:
      rsample_backward_kernel<LogStdBounding::kNone><<<grid, kThreads, 0, as_stream(stream)>>>(params, tiling);
      break;
    case LogStdBounding::kClamp:
      rsample_backward_kernel<LogStdBounding::kClamp><<<grid, kThreads, 0, as_stream(stream)>>>(params, tiling);
      break;
    case LogStdBounding::kTanh:
      rsample_backward_kernel<LogStdBounding::kTanh><<<grid, kThreads, 0, as_stream(stream)>>>(params, tiling);
      break;
  }
  return launch_status();
}

template <class T>
int tanh_gaussian_log_prob(const LogProbParams<T>& params, void* stream) {
  const Tiling tiling = tiling_of(params.rows, params.cols);
  log_prob_kernel<<<grid_size(tiling.tiles), kThreads, 0, as_stream(stream)>>>(params, tiling);
  return launch_status();
}

template <class T>
int tanh_gaussian_log_prob_backward(const LogProbBackwardParams<T>& params, void* stream) {
  const Tiling tiling = tiling_of(params.rows, params.cols);
  log_prob_backward_kernel<<<grid_size(tiling.tiles), kThreads, 0, as_stream(stream)>>>(params, tiling);
  return launch_status();
}

int take_noise(std::int64_t* state, std::int64_t* taken, void* stream) {
  return launch_blocks(TakeNoise{state, taken}, 1, stream);
}

#define SACFAST_INSTANTIATE(T)                                                         \
  template int tanh_gaussian_rsample(const RsampleParams<T>&, void*);                  \
  template int tanh_gaussian_rsample_backward(const RsampleBackwardParams<T>&, void*); \
  template int tanh_gaussian_log_prob(const LogProbParams<T>&, void*);                 \
  template int tanh_gaussian_log_prob_backward(const LogProbBackwardParams<T>&, void*);
SACFAST_INSTANTIATE(float)
SACFAST_INSTANTIATE(double)
SACFAST_INSTANTIATE(__half)
SACFAST_INSTANTIATE(__nv_bfloat16)
#undef SACFAST_INSTANTIATE

}  // namespace sacfast::cuda
