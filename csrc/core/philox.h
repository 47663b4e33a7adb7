// Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") and normal noise from it.
//
// Noise is a pure function of (seed, offset, element): any thread, tile or device computes any element, and all
// devices agree to rounding. Elements come in groups of 64 = 16 counters x 4 outputs, stored output by output, so
// that every vector width from 4 to 16 writes its results where they belong without a transposition:
//     element = 64 * group + 16 * output + lane      counter = 16 * group + lane
// A call takes one offset; consecutive offsets are independent streams.
#pragma once

#include "math.h"
#include "qualifiers.h"
#if defined(__SSE2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

namespace sacfast::SACFAST_ISA {

constexpr std::int64_t kNoiseGroup = 64;
constexpr int kNoiseLanes = 16;
constexpr std::uint32_t kStreamTag = 0x5ac00000u;  // keeps our counters apart from those of torch's own kernels

template <class U>
struct Philox4 {
  U x, y, z, w;
};

template <class U>
struct Product {
  U high, low;
};

SACFAST_HD Product<std::uint32_t> multiply_wide(std::uint32_t a, std::uint32_t b) {
  const std::uint64_t product = static_cast<std::uint64_t>(a) * b;
  return {static_cast<std::uint32_t>(product >> 32), static_cast<std::uint32_t>(product)};
}

#if !defined(__CUDACC__)
// 32 x 32 -> 64 bit products of the even lanes. The compilers do not find this instruction by themselves.
SACFAST_HD VecU64 multiply_even(VecU64 a, VecU64 b) {
#if defined(__AVX512F__)
  // The form with a (full) mask: GCC 12 warns of an uninitialised value inside its own header for the plain one.
  return bit_cast<VecU64>(_mm512_maskz_mul_epu32(0xff, bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return bit_cast<VecU64>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return bit_cast<VecU64>(_mm_mul_epu32(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

SACFAST_HD Product<VecU> multiply_wide(VecU a, std::uint32_t b) {
  const VecU64 factor = VecU64{} + b;
  const VecU64 even = multiply_even(bit_cast<VecU64>(a), factor);
  const VecU64 odd = multiply_even(bit_cast<VecU64>(a) >> 32, factor);
  const VecU64 low_half = VecU64{} + 0xffffffffu;
  return {bit_cast<VecU>((even >> 32) | (odd & ~low_half)), bit_cast<VecU>((even & low_half) | (odd << 32))};
}
#endif

// U is std::uint32_t, or VecU for as many counters at once.
template <class U>
SACFAST_HD Philox4<U> philox(U counter_low, U counter_high, std::uint64_t seed, std::uint64_t offset) {
  U x = counter_low, y = counter_high;
  U z = U{} + static_cast<std::uint32_t>(offset);
  U w = U{} + (static_cast<std::uint32_t>(offset >> 32) ^ kStreamTag);
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Product<U> a = multiply_wide(x, 0xD2511F53u);
    const Product<U> b = multiply_wide(z, 0xCD9E8D57u);
    x = b.high ^ y ^ key0;
    z = a.high ^ w ^ key1;
    y = b.low;
    w = a.low;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {x, y, z, w};
}

// Box-Muller: two standard normals from two 32-bit words. The radius uses 31 bits, so |normal| <= 6.66; the
// probability of what lies beyond is 3e-11.
template <class V>
struct NormalPair {
  V first, second;
};

template <class V>
SACFAST_HD NormalPair<V> box_muller(V radius_word, V angle_word) {
  const V uniform = radius_word * 0x1p-31f + 0x1p-32f;  // (0, 1]
  const V radius = square_root(V(natural_log(uniform) * -2.0f));
  const SinCos<V> direction = sincos_turns(V(angle_word * 0x1p-32f));  // [-1/2, 1/2) turns
  return {radius * direction.cos, radius * direction.sin};
}

// The four normals of one counter: elements 64 * group + lane + {0, 16, 32, 48}.
template <class T>
SACFAST_HD void normals_of_counter(std::uint64_t counter, std::uint64_t seed, std::uint64_t offset, T out[4]) {
  const Philox4<std::uint32_t> bits = philox<std::uint32_t>(static_cast<std::uint32_t>(counter),
                                                            static_cast<std::uint32_t>(counter >> 32), seed, offset);
  const NormalPair<T> a = box_muller<T>(static_cast<T>(static_cast<std::int32_t>(bits.x >> 1)),
                                        static_cast<T>(static_cast<std::int32_t>(bits.y)));
  const NormalPair<T> b = box_muller<T>(static_cast<T>(static_cast<std::int32_t>(bits.z >> 1)),
                                        static_cast<T>(static_cast<std::int32_t>(bits.w)));
  out[0] = a.first;
  out[1] = a.second;
  out[2] = b.first;
  out[3] = b.second;
}

// One element's normal, where no neighbour is wanted.
template <class T>
SACFAST_HD T normal_of_element(std::int64_t element, std::uint64_t seed, std::uint64_t offset) {
  const std::int64_t group = element / kNoiseGroup, within = element % kNoiseGroup;
  T four[4];
  normals_of_counter<T>(static_cast<std::uint64_t>(group * kNoiseLanes + within % kNoiseLanes), seed, offset, four);
  const std::int64_t output = within / kNoiseLanes;
  return output == 0 ? four[0] : (output == 1 ? four[1] : (output == 2 ? four[2] : four[3]));
}

#if !defined(__CUDACC__)
// Writes the 64 normals of one group.
SACFAST_HD void normals_of_group(std::int64_t group, std::uint64_t seed, std::uint64_t offset, double* out) {
  for (int lane = 0; lane < kNoiseLanes; ++lane) {
    double four[4];
    normals_of_counter(static_cast<std::uint64_t>(group) * kNoiseLanes + lane, seed, offset, four);
    for (int output = 0; output < 4; ++output) out[16 * output + lane] = four[output];
  }
}

SACFAST_HD void normals_of_group(std::int64_t group, std::uint64_t seed, std::uint64_t offset, float* out) {
  const std::uint64_t first = static_cast<std::uint64_t>(group) * kNoiseLanes;
  VecU lanes;
  for (int lane = 0; lane < kFloats; ++lane) lanes[lane] = static_cast<std::uint32_t>(lane);
  for (int lane = 0; lane < kNoiseLanes; lane += kFloats) {
    // A group's 16 counters never carry into the high word: the first is a multiple of 16.
    const VecU low = lanes + static_cast<std::uint32_t>(first + lane);
    const VecU high = VecU{} + static_cast<std::uint32_t>(first >> 32);
    const Philox4<VecU> bits = philox<VecU>(low, high, seed, offset);
    const NormalPair<VecF> a = box_muller<VecF>(__builtin_convertvector(bit_cast<VecI>(bits.x >> 1), VecF),
                                                __builtin_convertvector(bit_cast<VecI>(bits.y), VecF));
    const NormalPair<VecF> b = box_muller<VecF>(__builtin_convertvector(bit_cast<VecI>(bits.z >> 1), VecF),
                                                __builtin_convertvector(bit_cast<VecI>(bits.w), VecF));
    store(out + lane, a.first);
    store(out + lane + 16, a.second);
    store(out + lane + 32, b.first);
    store(out + lane + 48, b.second);
  }
}

// Writes the normals of elements [first, first + count): whole groups in place, ragged ends through a copy.
template <class T>
inline void fill_normals(std::int64_t first, std::int64_t count, std::uint64_t seed, std::uint64_t offset, T* out) {
  const std::int64_t end = first + count;
  for (std::int64_t group = first / kNoiseGroup; group * kNoiseGroup < end; ++group) {
    const std::int64_t start = group * kNoiseGroup;
    if (start >= first && start + kNoiseGroup <= end) {
      normals_of_group(group, seed, offset, out + (start - first));
      continue;
    }
    T scratch[kNoiseGroup];
    normals_of_group(group, seed, offset, scratch);
    const std::int64_t from = start < first ? first : start;
    const std::int64_t to = start + kNoiseGroup < end ? start + kNoiseGroup : end;
    for (std::int64_t element = from; element < to; ++element) out[element - first] = scratch[element - start];
  }
}
#endif

}  // namespace sacfast::SACFAST_ISA
