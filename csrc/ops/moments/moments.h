// Running mean and variance of batches, and normalisation by them. Formulas: core/moments.h.
//
// R rows (samples) of D columns; each column has its moments.
// T: float or double; on CUDA also half and bfloat16, which are computed in float.
#pragma once

#include <cmath>

#include "../../core/cpu_level.h"
#include "../../core/strided.h"

namespace sacfast {

// One number a column, in float32 or float64: exactly one of the pointers is set.
struct MomentColumns {
  float* single = nullptr;
  double* wide = nullptr;
  std::int64_t stride = 1;
};

template <class T>
struct RunningMomentsParams {
  std::int64_t rows, columns;    // R, D, both >= 1
  Strided<T> batch;              // [R, D]
  MomentColumns mean, variance;  // [D]
  double* count;                 // [1]; or
  std::int64_t* whole_count;     // [1]
  std::int64_t parts;            // of the rows, each summed by itself; never a matter of threads
  double* partial;               // [parts, 2, D]: each part's mean and sum of squared deviations
  double* count_before;          // [1], written with the parts
};

// The most parts: a block of the CUDA twin merges one a thread.
constexpr std::int64_t kMostParts = 256;

template <class T>
struct NormalizeParams {
  std::int64_t rows, columns;    // R, D
  Strided<T> x;                  // [R, D]; the backward pass reads it where there is a clip
  MomentColumns mean, variance;  // [D], only read
  double eps, clip;              // clip: infinity for none
  Strided<T> grad;               // [R, D]; absent: the forward pass
  T* out;                        // [R, D], dense
};

// Columns of a tile of the CPU twin's sums.
constexpr std::int64_t kMomentColumns = 1024;

// CPU: units [begin, end) of the parts' tiles, part after part; columns [begin, end); rows [begin, end).
#define SACFAST_MOMENTS_CPU(T)                                                                           \
  SACFAST_DECLARE_CPU(                                                                                   \
      void partial_moments(const RunningMomentsParams<T>& params, std::int64_t begin, std::int64_t end); \
      void merge_moments(const RunningMomentsParams<T>& params, std::int64_t begin, std::int64_t end);   \
      void normalize(const NormalizeParams<T>& params, std::int64_t begin, std::int64_t end))
SACFAST_MOMENTS_CPU(float)
SACFAST_MOMENTS_CPU(double)
#undef SACFAST_MOMENTS_CPU

// CUDA: `stream` is a cudaStream_t. Each returns a cudaError_t as int.
namespace cuda {
template <class T>
int partial_moments(const RunningMomentsParams<T>& params, void* stream);
template <class T>
int merge_moments(const RunningMomentsParams<T>& params, void* stream);
template <class T>
int normalize(const NormalizeParams<T>& params, void* stream);
}  // namespace cuda

namespace SACFAST_ISA {

// The first row of a part.
template <class T>
SACFAST_HD std::int64_t part_begin(const RunningMomentsParams<T>& p, std::int64_t part) {
  const std::int64_t longer = p.rows % p.parts;  // parts that have a row more
  return part * (p.rows / p.parts) + (part < longer ? part : longer);
}

SACFAST_HD double moment_at(const MomentColumns& columns, std::int64_t i) {
  return columns.wide != nullptr ? columns.wide[i * columns.stride]
                                 : static_cast<double>(columns.single[i * columns.stride]);
}
SACFAST_HD void set_moment(const MomentColumns& columns, std::int64_t i, double value) {
  if (columns.wide != nullptr) {
    columns.wide[i * columns.stride] = value;
  } else {
    columns.single[i * columns.stride] = static_cast<float>(value);
  }
}

// The count of the rows before, NaN where it is none, and the new one: before all columns are merged, which read the
// former.
template <class T>
SACFAST_HD void advance_count(const RunningMomentsParams<T>& p) {
  constexpr double most = 9007199254740992.0;  // 2^53: beyond, adding 1 to a double changes nothing
  const double before = p.count != nullptr ? *p.count : static_cast<double>(*p.whole_count);
  const bool counts = before >= 0.0 && before <= most;
  *p.count_before = counts ? before : static_cast<double>(NAN);
  if (p.count != nullptr) {
    *p.count = before + static_cast<double>(p.rows);
  } else if (counts) {
    *p.whole_count += p.rows;
  }
}

}  // namespace SACFAST_ISA
}  // namespace sacfast
