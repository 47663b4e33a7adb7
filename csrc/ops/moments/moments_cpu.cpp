// CPU twin, compiled once for each instruction set. Loops over columns are plain: the compilers make vectors of them.
#include "moments.h"

#include <algorithm>
#include <vector>

#include "../../core/moments.h"
#include "../../core/simd.h"
#include "../../core/tile.h"

namespace sacfast::SACFAST_ISA {
namespace {

constexpr std::int64_t kMostSums = 256;  // rows that are summed before they are merged
constexpr std::int64_t kSumsAtOnce = 128;

// The sums of x - shift and its square, of some columns. Of a narrow dense matrix several rows lie side by side, each
// with sums of its own: else a sum would wait for the one before it.
struct ColumnSums {
  double shift[kMomentColumns], sum[kMomentColumns], squares[kMomentColumns];
};

template <class T>
void add_row(const T* __restrict x, std::int64_t width, ColumnSums& sums) {
  double* __restrict shift = sums.shift, * __restrict sum = sums.sum, * __restrict squares = sums.squares;
  for (std::int64_t c = 0; c < width; ++c) {
    const double d = static_cast<double>(x[c]) - shift[c];
    sum[c] += d;
    squares[c] += d * d;
  }
}

// Four rows, each `width` after the one before: a quarter of the loads and stores of the sums.
template <class T>
void add_four_rows(const T* __restrict x, std::int64_t width, ColumnSums& sums) {
  double* __restrict shift = sums.shift, * __restrict sum = sums.sum, * __restrict squares = sums.squares;
  for (std::int64_t c = 0; c < width; ++c) {
    const double a = static_cast<double>(x[c]) - shift[c], b = static_cast<double>(x[width + c]) - shift[c];
    const double d = static_cast<double>(x[2 * width + c]) - shift[c];
    const double e = static_cast<double>(x[3 * width + c]) - shift[c];
    sum[c] += (a + b) + (d + e);
    squares[c] += (a * a + b * b) + (d * d + e * e);
  }
}

// Rows [begin, end) and columns [col, col + cols), merged into mean and deviations [cols] of the `count` rows before.
template <class T>
void add_block(const Strided<T>& batch, std::int64_t begin, std::int64_t end, std::int64_t col, std::int64_t cols,
               std::int64_t side_by_side, double count, double* __restrict mean, double* __restrict deviations,
               ColumnSums& sums, T* scratch) {
  const std::int64_t width = side_by_side * cols;
  const T* first = dense_tile<T>(batch, begin, 1, col, cols, scratch);
  for (std::int64_t c = 0; c < width; ++c) {
    sums.shift[c] = c < cols ? shift_of(static_cast<double>(first[c])) : sums.shift[c - cols];
    sums.sum[c] = sums.squares[c] = 0.0;
  }
  std::int64_t row = begin;
  const bool is_dense = cols == batch.row_stride && (cols == 1 || batch.col_stride == 1);
  for (; is_dense && row + 4 * side_by_side <= end; row += 4 * side_by_side) {
    add_four_rows(&element(batch, row, 0), width, sums);
  }
  for (; row < end; row += side_by_side) {
    const std::int64_t rows = std::min(side_by_side, end - row);
    add_row(dense_tile<T>(batch, row, rows, col, cols, scratch), rows * cols, sums);
  }
  for (std::int64_t c = cols; c < width; ++c) {
    sums.sum[c % cols] += sums.sum[c];
    sums.squares[c % cols] += sums.squares[c];
  }
  const double rows = static_cast<double>(end - begin);
  for (std::int64_t c = 0; c < cols; ++c) {
    const Moments both =
        merged({count, mean[c], deviations[c]}, moments_of(rows, sums.shift[c], sums.sum[c], sums.squares[c]));
    mean[c] = both.mean;
    deviations[c] = both.deviations;
  }
}

template <class T>
void partial(const RunningMomentsParams<T>& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t tiles = (p.columns + kMomentColumns - 1) / kMomentColumns;
  const bool is_dense = (p.columns == 1 || p.batch.col_stride == 1) && p.batch.row_stride == p.columns;
  const std::int64_t side_by_side = is_dense ? std::max<std::int64_t>(1, kSumsAtOnce / p.columns) : 1;
  ColumnSums sums;
  T scratch[kMomentColumns];
  for (std::int64_t unit = begin; unit < end; ++unit) {
    if (unit == 0) advance_count(p);
    const std::int64_t part = unit / tiles, col = unit % tiles * kMomentColumns;
    const std::int64_t cols = std::min(kMomentColumns, p.columns - col);
    double *mean = p.partial + part * 2 * p.columns + col, *deviations = mean + p.columns;
    const std::int64_t first = part_begin(p, part), last = part_begin(p, part + 1);
    for (std::int64_t row = first; row < last; row += kMostSums * side_by_side) {
      add_block(p.batch, row, std::min(last, row + kMostSums * side_by_side), col, cols, side_by_side,
                static_cast<double>(row - first), mean, deviations, sums, scratch);
    }
  }
}

template <class T>
void merge(const RunningMomentsParams<T>& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t c = begin; c < end; ++c) {
    Moments batch{};
    for (std::int64_t part = 0; part < p.parts; ++part) {
      const double* of_part = p.partial + part * 2 * p.columns + c;
      const double rows = static_cast<double>(part_begin(p, part + 1) - part_begin(p, part));
      batch = merged(batch, Moments{rows, of_part[0], of_part[p.columns]});
    }
    const double count = *p.count_before;
    const Moments all = merged({count, moment_at(p.mean, c), count * moment_at(p.variance, c)}, batch);
    set_moment(p.mean, c, all.mean);
    set_moment(p.variance, c, all.deviations / all.count);
  }
}

// The factors of all columns, repeated for the rows of a tile.
template <class T>
struct Factors {
  std::vector<T> high, low, scale;

  Factors(const NormalizeParams<T>& p, std::int64_t rows) {
    const std::int64_t in_tile = std::clamp<std::int64_t>(kTileElements / p.columns, 1, rows);
    for (std::vector<T>* each : {&high, &low, &scale}) each->resize(static_cast<std::size_t>(in_tile * p.columns));
    for (std::int64_t c = 0; c < p.columns; ++c) {
      const auto factors = normal_factors<T>(moment_at(p.mean, c), moment_at(p.variance, c), p.eps);
      for (std::int64_t r = 0; r < in_tile; ++r) {
        const auto i = static_cast<std::size_t>(r * p.columns + c);
        high[i] = factors.high;
        low[i] = factors.low;
        scale[i] = factors.scale;
      }
    }
  }
};

template <class T>
void forward(const NormalizeParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const Factors<T> factors(p, end - begin);
  const V most = constant<V>(p.clip), least = constant<V>(-p.clip);
  T scratch[kTileElements];
  for_each_tile(begin, end, p.columns, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
    const T* x = dense_tile<T>(p.x, row, rows, col, cols, scratch);
    const T *high = factors.high.data() + col, *low = factors.low.data() + col, *scale = factors.scale.data() + col;
    T* out = p.out + row * p.columns + col;
    for_each_vector<V>(rows * cols, [&](std::int64_t i, auto vector) {
      const V y = normalized(vector.load(x + i), vector.load(high + i), vector.load(low + i), vector.load(scale + i));
      vector.store(out + i, clip(y, least, most));
    });
  });
}

template <class T>
void backward(const NormalizeParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const Factors<T> factors(p, end - begin);
  const bool is_clipped = std::isfinite(p.clip);
  const V most = constant<V>(p.clip), zero = constant<V>(0.0);
  T x_scratch[kTileElements], grad_scratch[kTileElements];
  for_each_tile(begin, end, p.columns, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
    const T* grad = dense_tile<T>(p.grad, row, rows, col, cols, grad_scratch);
    const T* x = is_clipped ? dense_tile<T>(p.x, row, rows, col, cols, x_scratch) : grad;
    const T *high = factors.high.data() + col, *low = factors.low.data() + col, *scale = factors.scale.data() + col;
    T* out = p.out + row * p.columns + col;
    for_each_vector<V>(rows * cols, [&](std::int64_t i, auto vector) {
      const V slope = vector.load(scale + i), passed = vector.load(grad + i) * slope;
      if (!is_clipped) return vector.store(out + i, passed);
      const V y = normalized(vector.load(x + i), vector.load(high + i), vector.load(low + i), slope);
      vector.store(out + i, absolute(y) <= most ? passed : zero);  // none for NaN, as torch.clamp has it
    });
  });
}

}  // namespace

#define SACFAST_DEFINE(T)                                                                             \
  void partial_moments(const RunningMomentsParams<T>& params, std::int64_t begin, std::int64_t end) { \
    partial(params, begin, end);                                                                      \
  }                                                                                                   \
  void merge_moments(const RunningMomentsParams<T>& params, std::int64_t begin, std::int64_t end) {   \
    merge(params, begin, end);                                                                        \
  }                                                                                                   \
  void normalize(const NormalizeParams<T>& params, std::int64_t begin, std::int64_t end) {            \
    return params.grad.data == nullptr ? forward(params, begin, end) : backward(params, begin, end);  \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
