// CUDA twin: the table of tensors travels in the kernel's parameters, so that a launch needs no copy to the device.
#include "adam_polyak.h"

#include "../../core/launch.cuh"

namespace sacfast::cuda {
namespace {

using namespace sacfast::SACFAST_ISA;

constexpr int kChunk = 4 * kThreads;  // elements of one parameter that a block takes at a time

template <class T, int kCapacity>
struct Table {
  AdamPolyakSpan<T> span[kCapacity];  // `begin` is not read
  std::int64_t size[kCapacity];       // elements
  unsigned first_chunk[kCapacity];    // chunks before this parameter
  int count;
};
constexpr int kShort = 32;
constexpr int kLong = 540;
static_assert(sizeof(Table<float, kLong>) < 32600, "the table must fit in a kernel's parameters");

template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads) update_kernel(const __grid_constant__ Table<T, kCapacity> table,
                                                          unsigned chunks, AdamPolyakFactors<ArithmeticOf<T>> factors) {
  using Acc = ArithmeticOf<T>;
  for (unsigned chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    int low = 0, high = table.count - 1;  // the last parameter whose first chunk is not after this one
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (table.first_chunk[middle] <= chunk) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const std::int64_t start = static_cast<std::int64_t>(chunk - table.first_chunk[low]) * kChunk;
    const AdamPolyakSpan<T>& span = table.span[low];
    for (int i = static_cast<int>(threadIdx.x); i < kChunk; i += kThreads) {
      const std::int64_t at = start + i;
      if (at >= table.size[low]) break;
      const AdamState<Acc> now{static_cast<Acc>(span.param[at]), static_cast<Acc>(span.exp_avg[at]),
                               static_cast<Acc>(span.exp_avg_sq[at])};
      const AdamState<Acc> next = adam_w_element(static_cast<Acc>(span.grad[at]), now, factors);
      span.param[at] = static_cast<T>(next.parameter);
      span.exp_avg[at] = static_cast<T>(next.exp_avg);
      span.exp_avg_sq[at] = static_cast<T>(next.exp_avg_sq);
      if (span.target != nullptr) {
        // The average is of the parameter as it is stored.
        const Acc stored = static_cast<Acc>(span.param[at]);
        span.target[at] = static_cast<T>(polyak_element(static_cast<Acc>(span.target[at]), stored, factors.tau));
      }
    }
  }
}

template <int kCapacity, class T>
int launch(const AdamPolyakParams<T>& p, std::int64_t first, std::int64_t count, cudaStream_t stream) {
  Table<T, kCapacity> table{};
  table.count = static_cast<int>(count);
  std::int64_t chunks = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t s = first + i;
    const std::int64_t end = s + 1 < p.count ? p.spans[s + 1].begin : p.total;
    table.span[i] = p.spans[s];
    table.size[i] = end - p.spans[s].begin;
    table.first_chunk[i] = static_cast<unsigned>(chunks);
    chunks += (table.size[i] + kChunk - 1) / kChunk;
  }
  if (chunks == 0) return 0;
  update_kernel<T, kCapacity><<<grid_size(chunks), kThreads, 0, stream>>>(table, static_cast<unsigned>(chunks),
                                                                          p.template factors<ArithmeticOf<T>>());
  return launch_status();
}

}  // namespace

template <class T>
int adam_polyak(const AdamPolyakParams<T>& params, void* stream) {
  if (params.count <= kShort) return launch<kShort>(params, 0, params.count, as_stream(stream));
  for (std::int64_t first = 0; first < params.count; first += kLong) {
    const std::int64_t left = params.count - first;
    const int status = launch<kLong>(params, first, left < kLong ? left : kLong, as_stream(stream));
    if (status != 0) return status;
  }
  return 0;
}

#define SACFAST_INSTANTIATE(T) template int adam_polyak(const AdamPolyakParams<T>&, void*);
SACFAST_INSTANTIATE(float)
SACFAST_INSTANTIATE(double)
SACFAST_INSTANTIATE(__half)
SACFAST_INSTANTIATE(__nv_bfloat16)
#undef SACFAST_INSTANTIATE

}  // namespace sacfast::cuda
