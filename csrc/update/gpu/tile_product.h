// How a block multiplies two parts of matrices that it holds in shared memory: exactly, or on tensor cores.
//
// left [kDepth, kTile] and right [kDepth, kTile], rows kPitch apart: tile(row, col) += sum over k of left(k, row)
// right(k, col). A thread holds some of the tile's sums; `for_each` says which.
#pragma once

#include "../../core/block.h"
#include "../engine.h"

namespace sacfast::SACFAST_ISA {

constexpr int kTile = 32;          // rows and columns of an output tile: a block's
constexpr int kDepth = 64;         // of the operands that a block holds at a time
constexpr int kPitch = kTile + 8;  // the reads of a warp's fragments then meet in no bank; fours stay aligned

// In T. Four groups of 64 threads each take a quarter of the depth, with 4 x 4 sums a thread; the groups' sums are then
// added in a fixed order.
template <class T>
struct ExactTile {
  static constexpr int kGroups = 4, kGroupThreads = kBlockThreads / kGroups;
  struct Sums {
    T values[4][4];
  };

  SACFAST_HD static void add(int thread, const T* left, const T* right, Sums& sums) {
    constexpr int depth = kDepth / kGroups;
    const int first = thread / kGroupThreads * depth;
    left += first * kPitch + row_of(thread);
    right += first * kPitch + col_of(thread);
    for (int k = 0; k < depth; ++k) {
      const Four a = *reinterpret_cast<const Four*>(left + k * kPitch);
      const Four b = *reinterpret_cast<const Four*>(right + k * kPitch);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) sums.values[i][j] += a.values[i] * b.values[j];
      }
    }
  }

  // Calls visit(group, row, col, sum) for the sums of a thread.
  template <class Visit>
  SACFAST_HD static void for_each(int thread, const Sums& sums, const Visit& visit) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        visit(thread / kGroupThreads, row_of(thread) + i, col_of(thread) + j, sums.values[i][j]);
      }
    }
  }

 private:
  struct alignas(16) Four {
    T values[4];
  };
  SACFAST_HD static int row_of(int thread) { return thread % kGroupThreads / 8 * 4; }
  SACFAST_HD static int col_of(int thread) { return thread % kGroupThreads % 8 * 4; }
};

// On tensor cores, from float32 rounded to TF32 or bfloat16, with sums in float32. Each of the eight warps makes 16 x 8
// of the tile by mma.sync.m16n8k8 (TF32) or m16n8k16 (bfloat16); PTX ISA, "Matrix fragments for mma".
template <Precision kPrecision>
struct TensorTile {
  static constexpr int kGroups = 1;
  static constexpr bool kIsTf32 = kPrecision == Precision::kTf32;
  struct Sums {
    float values[4];
  };

  SACFAST_HD static void add(int thread, const float* left, const float* right, Sums& sums) {
#if defined(__CUDA_ARCH__)
    const Place at(thread);
    left += at.first_row + at.group;
    right += at.first_col + at.group;
    // A warp multiplies together: the loops count alike in all its threads.
    if constexpr (kIsTf32) {
      left += at.lane * kPitch;
      right += at.lane * kPitch;
#pragma unroll
      for (int k = 0; k < kDepth; k += 8) {
        multiply_tf32(tf32(left[k * kPitch]), tf32(left[k * kPitch + 8]), tf32(left[(k + 4) * kPitch]),
                      tf32(left[(k + 4) * kPitch + 8]), tf32(right[k * kPitch]), tf32(right[(k + 4) * kPitch]),
                      sums.values);
      }
    } else {
      left += 2 * at.lane * kPitch;
      right += 2 * at.lane * kPitch;
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        multiply_bf16(pair(left + k * kPitch), pair(left + k * kPitch + 8), pair(left + (k + 8) * kPitch),
                      pair(left + (k + 8) * kPitch + 8), pair(right + k * kPitch), pair(right + (k + 8) * kPitch),
                      sums.values);
      }
    }
#else
    const Place at(thread);
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < kDepth; ++k) {
        sums.values[i] += rounded(left[k * kPitch + at.row(i)]) * rounded(right[k * kPitch + at.col(i)]);
      }
    }
#endif
  }

  template <class Visit>
  SACFAST_HD static void for_each(int thread, const Sums& sums, const Visit& visit) {
    const Place at(thread);
    for (int i = 0; i < 4; ++i) visit(0, at.row(i), at.col(i), sums.values[i]);
  }

  // Ties to even (bfloat16), or away from zero (TF32), as the GPU's conversions have it.
  SACFAST_HD static float rounded(float value) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7f800000u) == 0x7f800000u) return value;
    bits = kIsTf32 ? (bits + 0x1000u) & ~0x1fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) & ~0xffffu;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  // A thread's place in its warp's 16 x 8: in PTX, groupID and threadID_in_group.
  struct Place {
    int first_row, first_col, group, lane;
    SACFAST_HD explicit Place(int thread)
        : first_row(thread / 32 / 4 * 16), first_col(thread / 32 % 4 * 8), group(thread % 32 / 4), lane(thread % 4) {}
    // Of sum i.
    SACFAST_HD int row(int i) const { return first_row + group + i / 2 * 8; }
    SACFAST_HD int col(int i) const { return first_col + 2 * lane + i % 2; }
  };

#if defined(__CUDA_ARCH__)
  __device__ static std::uint32_t tf32(float value) {
    std::uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
  }

  // Elements k (low half) and k + 1 of a column.
  __device__ static std::uint32_t pair(const float* column) {
    std::uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(column[kPitch]), "f"(column[0]));
    return bits;
  }

  __device__ static void multiply_tf32(std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                       std::uint32_t b0, std::uint32_t b1, float (&sums)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }

  __device__ static void multiply_bf16(std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                       std::uint32_t b0, std::uint32_t b1, float (&sums)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#endif
};

}  // namespace sacfast::SACFAST_ISA
