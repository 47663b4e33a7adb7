// Fixed-width vectors as GCC and Clang offer them: `Vec<float, 8>` has the operators of a float.
//
// The width is the only thing that differs between instruction sets: the compiler turns the same source into
// SSE, AVX2, AVX-512 or NEON instructions. Not included by CUDA sources, whose lanes are threads.
#pragma once

#include "qualifiers.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace sacfast::SACFAST_ISA {

template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kFloats = kVectorBytes / 4;  // float lanes of the native vector
using VecF = Vec<float, kFloats>;
using VecI = Vec<std::int32_t, kFloats>;
using VecU = Vec<std::uint32_t, kFloats>;
using VecU64 = Vec<std::uint64_t, kFloats / 2>;

template <class To, class From>
SACFAST_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// How many scalars a V holds, and of which type: V is a vector, or a plain float or double.
template <class V>
struct LanesOf {
  using Scalar = V;
  static constexpr int count = 1;
};
template <>
struct LanesOf<VecF> {
  using Scalar = float;
  static constexpr int count = kFloats;
};

// The widest V that carries T on this instruction set; double stays scalar (it serves tests and gradcheck).
template <class T>
struct Widest {
  using type = T;
};
template <>
struct Widest<float> {
  using type = VecF;
};

template <class V>
SACFAST_HD V broadcast(typename LanesOf<V>::Scalar value) {
  if constexpr (LanesOf<V>::count == 1) {
    return value;
  } else {
    return value - V{};  // the compilers turn this, but no loop over the lanes, into one broadcast
  }
}

template <class V>
SACFAST_HD V load(const typename LanesOf<V>::Scalar* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}

template <class V>
SACFAST_HD void store(typename LanesOf<V>::Scalar* to, V value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

// All bits set in the first `count` lanes.
template <int kLanes>
SACFAST_HD Vec<std::int32_t, kLanes> first_lanes(std::int64_t count) {
  Vec<std::int32_t, kLanes> lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<std::int32_t>(count);
}

// The first `count` lanes of a vector, the others filled with another value.
template <class V>
SACFAST_HD V fill_from(std::int64_t count, V value, V filling) {
  if constexpr (LanesOf<V>::count == 1) {
    return count > 0 ? value : filling;
  } else {
    return first_lanes<LanesOf<V>::count>(count) ? value : filling;
  }
}

// The first `count` lanes only, at the ragged end of an array; the other lanes are zero. Copying a number of bytes that
// the compiler does not know is a call, so AVX loads and stores by a mask.
template <class V>
SACFAST_HD V load_partial(const typename LanesOf<V>::Scalar* from, std::int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64)
    return bit_cast<V>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) return bit_cast<V>(_mm256_maskload_ps(from, bit_cast<__m256i>(first_lanes<8>(count))));
#endif
  V value{};
  __builtin_memcpy(&value, from, static_cast<std::size_t>(count) * sizeof(*from));
  return value;
}

template <class V>
SACFAST_HD void store_partial(typename LanesOf<V>::Scalar* to, V value, std::int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64)
    return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), bit_cast<__m512>(value));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32)
    return _mm256_maskstore_ps(to, bit_cast<__m256i>(first_lanes<8>(count)), bit_cast<__m256>(value));
#endif
  __builtin_memcpy(to, &value, static_cast<std::size_t>(count) * sizeof(*to));
}

// The larger one; b where either is NaN. One instruction, which the compilers do not find by themselves.
template <class V>
SACFAST_HD V larger(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64)
    return bit_cast<V>(_mm512_maskz_max_ps(0xffff, bit_cast<__m512>(a), bit_cast<__m512>(b)));
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return bit_cast<V>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) return bit_cast<V>(_mm_max_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
#endif
  return a > b ? a : b;
}

// The smaller one; b where either is NaN.
template <class V>
SACFAST_HD V smaller(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64)
    return bit_cast<V>(_mm512_maskz_min_ps(0xffff, bit_cast<__m512>(a), bit_cast<__m512>(b)));
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return bit_cast<V>(_mm256_min_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) return bit_cast<V>(_mm_min_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
#endif
  return a < b ? a : b;
}

// from[index] of each lane, for an index in [0, 2 kFloats) (its other bits are not read): two loads, and no gather,
// which would take an instruction for each lane.
SACFAST_HD VecF pick(const float* from, VecI index) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(
      _mm512_permutex2var_ps(_mm512_loadu_ps(from), bit_cast<__m512i>(index), _mm512_loadu_ps(from + kFloats)));
#elif defined(__AVX2__)
  const __m256i lane = bit_cast<__m256i>(index);
  const VecF low = bit_cast<VecF>(_mm256_permutevar8x32_ps(_mm256_loadu_ps(from), lane));
  const VecF high = bit_cast<VecF>(_mm256_permutevar8x32_ps(_mm256_loadu_ps(from + kFloats), lane));
  return (index & kFloats) != 0 ? high : low;
#else
  VecF value;
  for (int lane = 0; lane < kFloats; ++lane) value[lane] = from[index[lane] & (2 * kFloats - 1)];
  return value;
#endif
}

// Combines a vector's lanes with those half a vector further, and so on: sums are in pairs. Halves are vectors too:
// from a loop over the lanes, GCC makes instructions for each lane.
template <class Scalar, int kLanes, class Combine>
SACFAST_HD Scalar fold_lanes(Vec<Scalar, kLanes> value, Combine combine) {
  if constexpr (kLanes == 4) {
    return combine(combine(value[0], value[2]), combine(value[1], value[3]));
  } else {
    Vec<Scalar, kLanes / 2> halves[2];
    __builtin_memcpy(halves, &value, sizeof(value));
    return fold_lanes<Scalar, kLanes / 2>(combine(halves[0], halves[1]), combine);
  }
}

// The sum of a vector's lanes.
template <class V>
SACFAST_HD typename LanesOf<V>::Scalar sum_of_lanes(V value) {
  if constexpr (LanesOf<V>::count == 1) {
    return value;
  } else {
    return fold_lanes<float, kFloats>(value, [](auto a, auto b) { return a + b; });
  }
}

// The largest of a vector's lanes, none of which is NaN.
template <class V>
SACFAST_HD typename LanesOf<V>::Scalar largest_of_lanes(V value) {
  if constexpr (LanesOf<V>::count == 1) {
    return value;
  } else {
    return fold_lanes<float, kFloats>(value, [](auto a, auto b) { return a > b ? a : b; });
  }
}

// Calls body(first_index, loader, storer) for every vector of an array of n scalars, the ragged last one included.
// Beyond the end, `load_or` fills the lanes with a value that suits the body, and `kept` makes them zero.
template <class V>
struct FullVector {
  SACFAST_HD V load(const typename LanesOf<V>::Scalar* from) const { return SACFAST_ISA::load<V>(from); }
  SACFAST_HD V load_or(const typename LanesOf<V>::Scalar* from, typename LanesOf<V>::Scalar) const {
    return load(from);
  }
  SACFAST_HD V kept(V value) const { return value; }
  SACFAST_HD void store(typename LanesOf<V>::Scalar* to, V value) const { SACFAST_ISA::store<V>(to, value); }
};
template <class V>
struct PartialVector {
  std::int64_t count;
  SACFAST_HD V load(const typename LanesOf<V>::Scalar* from) const { return load_partial<V>(from, count); }
  SACFAST_HD V load_or(const typename LanesOf<V>::Scalar* from, typename LanesOf<V>::Scalar filling) const {
    return fill_from(count, load(from), broadcast<V>(filling));
  }
  SACFAST_HD V kept(V value) const { return fill_from(count, value, V{}); }
  SACFAST_HD void store(typename LanesOf<V>::Scalar* to, V value) const { store_partial<V>(to, value, count); }
};

template <class V, class Body>
SACFAST_HD void for_each_vector(std::int64_t n, Body body) {
  constexpr std::int64_t width = LanesOf<V>::count;
  std::int64_t i = 0;
  for (; i + width <= n; i += width) body(i, FullVector<V>{});
  if (i < n) body(i, PartialVector<V>{n - i});
}

}  // namespace sacfast::SACFAST_ISA
