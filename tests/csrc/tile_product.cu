// A block's products on tensor cores, each as a kernel of its own: tests/test_native.py looks at what nvcc makes of
// them.
#include "update/gpu/tile_product.h"

namespace sacfast::SACFAST_ISA {
namespace {

template <Precision kPrecision>
__global__ void multiply(const float* operands, float* out) {
  typename TensorTile<kPrecision>::Sums sums{};
  TensorTile<kPrecision>::add(static_cast<int>(threadIdx.x), operands, operands + kDepth * kPitch, sums);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = sums.values[i];
}

template __global__ void multiply<Precision::kTf32>(const float*, float*);
template __global__ void multiply<Precision::kBfloat16>(const float*, float*);

}  // namespace
}  // namespace sacfast::SACFAST_ISA
