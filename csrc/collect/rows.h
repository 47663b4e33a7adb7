// What happens to the rows of a step of the environments besides acting: n rows, O observation size, A action size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace sacfast {

// `columns` columns of a wider dense matrix, from a dense one of its own: [rows, columns].
template <class T>
void cast_columns(const T* source, std::int64_t rows, std::int64_t columns, float* target, std::int64_t stride) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      target[row * stride + column] = static_cast<float>(source[row * columns + column]);
    }
  }
}

// Whether all values lie in [-limit, limit]; NaN does not.
inline bool all_within(const float* values, std::int64_t count, float limit) {
  bool within = true;
  for (std::int64_t i = 0; i < count; ++i) within &= std::fabs(values[i]) <= limit;
  return within;
}

inline bool all_finite(const float* values, std::int64_t count) {
  return all_within(values, count, std::numeric_limits<float>::max());
}

inline bool any(const bool* values, std::int64_t count) {
  bool found = false;
  for (std::int64_t i = 0; i < count; ++i) found |= values[i];
  return found;
}

// What an action in [-1, 1] becomes in the task's units: scale * action + offset, within [low, high]. Each [A].
struct ActionRange {
  const double *scale, *offset, *low, *high;
};

// From actions [n, A]: a copy, clipped to [-1, 1], and what the task takes. False where a value lies beyond `limit`, or
// is NaN: the results are not to be used then.
inline bool rescale(const float* action, std::int64_t rows, std::int64_t columns, float limit, const ActionRange& range,
                    float* clipped, double* native) {
  bool within = true;
  for (std::int64_t row = 0; row < rows; ++row, action += columns, clipped += columns, native += columns) {
    for (std::int64_t column = 0; column < columns; ++column) {
      within &= std::fabs(action[column]) <= limit;
      clipped[column] = std::clamp(action[column], -1.0f, 1.0f);
      const double value = clipped[column] * range.scale[column] + range.offset[column];  // may round over a bound
      native[column] = std::clamp(value, range.low[column], range.high[column]);
    }
  }
  return within;
}

}  // namespace sacfast
