// csrc/core/panels.h against plain loops, at sizes around the edges of vectors, panels and tiles; csrc/core/adam.h.
//
// The elements are small whole numbers, so that every sum is exact in any order, and every result must be equal. What
// lies around a matrix is filled with marks, to see that nothing is written there.
//
// Exits with 1 if a check fails.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <vector>

#include "core/adam.h"
#include "core/panels.h"
#include "expect.h"

namespace sacfast::SACFAST_ISA {
namespace {

template <class T>
constexpr T kMark = T(12345);

// A matrix row by row, as everyone would write it.
template <class T>
struct Matrix {
  std::int64_t rows, cols;
  std::vector<T> data;

  Matrix(std::int64_t of_rows, std::int64_t of_cols)
      : rows(of_rows), cols(of_cols), data(static_cast<std::size_t>(of_rows * of_cols)) {}
  T& at(std::int64_t row, std::int64_t col) { return data[static_cast<std::size_t>(row * cols + col)]; }
};

template <class T>
Matrix<T> random_matrix(Mixer& mixer, std::int64_t rows, std::int64_t cols) {
  Matrix<T> matrix(rows, cols);
  for (T& each : matrix.data) each = static_cast<T>(mixer.whole(4));
  return matrix;
}

// Panels of their own size, so that a sanitizer sees an access beyond; `spare` rows of marks end every panel.
template <class T>
struct PanelMatrix {
  std::int64_t rows, cols, spare;
  std::vector<T> data;

  PanelMatrix(std::int64_t of_rows, std::int64_t of_cols, std::int64_t spare_rows)
      : rows(of_rows),
        cols(of_cols),
        spare(spare_rows),
        data(static_cast<std::size_t>(panel_elements<T>(of_rows + spare_rows, of_cols)), kMark<T>) {
    for (std::int64_t col = 0; col < panel_count<T>(cols) * kPanel<T>; ++col) {
      for (std::int64_t row = 0; row < rows; ++row) view().at(row, col) = 0;  // the padding, too
    }
  }

  PanelMatrix(Matrix<T>& from, std::int64_t spare_rows) : PanelMatrix(from.rows, from.cols, spare_rows) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) view().at(row, col) = from.at(row, col);
    }
  }

  Panels<T> view() { return panels(data.data(), rows + spare); }
  Panels<const T> readable() { return {data.data(), view().stride}; }

  // Nothing but the matrix has changed: the padding is zero, the spare rows are marks.
  bool is_whole() {
    for (std::int64_t col = 0; col < panel_count<T>(cols) * kPanel<T>; ++col) {
      for (std::int64_t row = 0; row < rows + spare; ++row) {
        if (row >= rows && view().at(row, col) != kMark<T>) return false;
        if (row < rows && col >= cols && view().at(row, col) != 0) return false;
      }
    }
    return true;
  }
};

template <class T>
std::vector<std::int64_t> sizes_around(std::initializer_list<std::int64_t> edges) {
  std::vector<std::int64_t> sizes = {1};
  for (const std::int64_t edge : edges) {
    for (const std::int64_t size : {edge - 1, edge, edge + 1}) {
      if (size > sizes.back()) sizes.push_back(size);
    }
  }
  return sizes;
}

template <class T>
std::vector<std::int64_t> column_sizes() {
  return sizes_around<T>({kLanes<T>, kPanel<T>, 2 * kPanel<T>});
}

template <class T>
std::vector<std::int64_t> row_sizes() {
  return sizes_around<T>({kTileRows<T>, 2 * kTileRows<T>, 71});
}

// ---- Layout -----------------------------------------------------------------------------------------------------

template <class T>
void check_layout() {
  for (const std::int64_t cols : column_sizes<T>()) {
    constexpr std::int64_t rows = 3;
    PanelMatrix<T> matrix(rows, cols, 2);
    EXPECT(panel_count<T>(cols) * kPanel<T> >= cols && (panel_count<T>(cols) - 1) * kPanel<T> < cols);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) {
        const std::int64_t panel = col / kPanel<T>, within = col % kPanel<T>;
        EXPECT(&matrix.view().at(row, col) == matrix.view().row(panel, row) + within);
        EXPECT(&matrix.view().at(row, col) == matrix.view().from_row(row).panel(panel) + within);
      }
    }
  }
}

void check_pieces() {
  for (std::int64_t begin : {0, 5}) {
    for (std::int64_t length = 0; length <= 60; ++length) {
      for (std::int64_t most = 1; most <= 15; ++most) {
        std::int64_t next = begin, fewest = length, largest = 0, pieces = 0;
        for_each_piece(begin, begin + length, most, [&](std::int64_t first, std::int64_t count) {
          EXPECT(first == next);
          next = first + count;
          fewest = count < fewest ? count : fewest;
          largest = count > largest ? count : largest;
          ++pieces;
        });
        EXPECT(next == begin + length);
        EXPECT(largest <= most && (length == 0 || (fewest >= 1 && largest - fewest <= 1)));
        EXPECT(pieces == (length + most - 1) / most);
      }
    }
  }
}

void check_constants() {
  for (std::int64_t count = 1; count <= 14; ++count) {
    std::int64_t called = 0;
    with_constant<14>(count, [&](auto constant) { called = decltype(constant)::value; });
    EXPECT(called == count);
  }
}

// ---- Products ---------------------------------------------------------------------------------------------------

// Stores a product and counts the stores. One type for all: every type has tiles of its own to compile.
template <class T>
struct StoreAndCount {
  Panels<T> out;
  T* data;
  int* times;

  void operator()(std::int64_t row, std::int64_t panel, std::int64_t col, VectorOf<T> sum) const {
    T* at = out.row(panel, row) + col;
    store(at, sum);
    for (int lane = 0; lane < kLanes<T>; ++lane) ++times[at - data + lane];
  }
};

template <bool kBiased, class T>
void check_multiply_rows(std::int64_t rows, std::int64_t depth, std::int64_t cols) {
  Mixer mixer{static_cast<std::uint64_t>(rows * 10007 + depth * 101 + cols)};
  Matrix<T> left = random_matrix<T>(mixer, rows, depth);
  Matrix<T> right = random_matrix<T>(mixer, depth + 1, cols);  // the last row is the bias
  PanelMatrix<T> left_panels(left, 2), right_panels(right, 0), out(rows, cols, 1);
  // What is not read may hold anything: columns beyond the depth, as a wider matrix has there.
  for (std::int64_t col = depth; col < panel_count<T>(depth) * kPanel<T>; ++col) {
    for (std::int64_t row = 0; row < rows; ++row) left_panels.view().at(row, col) = std::numeric_limits<T>::quiet_NaN();
  }
  std::vector<int> times(out.data.size(), 0);
  multiply_rows<kBiased>(left_panels.readable(), rows, depth, right_panels.readable(), cols,
                         StoreAndCount<T>{out.view(), out.data.data(), times.data()});
  int wrong = 0, not_once = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      T sum = kBiased ? right.at(depth, col) : T(0);
      for (std::int64_t k = 0; k < depth; ++k) sum += left.at(row, k) * right.at(k, col);
      wrong += out.view().at(row, col) != sum;
      not_once += times[&out.view().at(row, col) - out.data.data()] != 1;
    }
  }
  if (wrong + not_once > 0) {
    std::printf("multiply_rows [%d, %d] x [%d, %d]\n", int(rows), int(depth), int(depth), int(cols));
  }
  EXPECT(wrong == 0);
  EXPECT(not_once == 0);
  EXPECT(out.is_whole());
}

// `together` panels of the result at a time, as many as the product is asked for.
template <class T>
void check_multiply_columns(std::int64_t count, std::int64_t depth, std::int64_t cols) {
  Mixer mixer{static_cast<std::uint64_t>(count * 10007 + depth * 101 + cols)};
  Matrix<T> left = random_matrix<T>(mixer, depth, count), right = random_matrix<T>(mixer, depth, cols);
  PanelMatrix<T> left_panels(left, 1), right_panels(right, 1);
  const std::int64_t together = panel_count<T>(cols);
  std::vector<T> scratch(static_cast<std::size_t>(kMostSquares * kPanel<T> * kPanel<T>), kMark<T>);
  std::vector<std::int64_t> next(static_cast<std::size_t>(together), 0);
  // Every number of pieces gives the same sums: none, some, and more than there are products.
  const std::vector<const T*> memory(static_cast<std::size_t>(40 * (count % 3)), scratch.data());
  std::int64_t announced = 0;
  int wrong = 0;
  multiply_columns(
      left_panels.readable(), count, depth, right_panels.readable(), cols, together, scratch.data(),
      [&](std::int64_t first, std::int64_t rows, std::int64_t panel, const T* sums) {
        EXPECT(first == next[static_cast<std::size_t>(panel)] && first % kPanel<T> == 0);
        EXPECT(rows % kPanel<T> == 0 || first + rows == count);
        EXPECT(first + rows <= announced);
        next[static_cast<std::size_t>(panel)] = first + rows;
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t col = panel * kPanel<T>; col < cols && col < (panel + 1) * kPanel<T>; ++col) {
            T sum = 0;
            for (std::int64_t row = 0; row < depth; ++row) sum += left.at(row, first + i) * right.at(row, col);
            wrong += sums[i * kPanel<T> + col % kPanel<T>] != sum;
          }
        }
      },
      [&](std::int64_t first, std::int64_t end) {
        EXPECT(first == announced && end > first && end <= count);
        announced = end;
        return Pieces<T>{memory.data(), memory.data() + memory.size()};
      });
  if (wrong > 0) std::printf("multiply_columns [%d, %d]^T x [%d, %d]\n", int(depth), int(count), int(depth), int(cols));
  EXPECT(wrong == 0);
  for (const std::int64_t each : next) EXPECT(each == count);
  EXPECT(announced == count);
}

template <class T>
void check_products() {
  for (const std::int64_t cols : column_sizes<T>()) {
    for (const std::int64_t depth : column_sizes<T>()) {
      for (const std::int64_t rows : row_sizes<T>()) {
        check_multiply_rows<true, T>(rows, depth, cols);
        check_multiply_rows<false, T>(rows, depth, cols);
      }
    }
    for (const std::int64_t count : column_sizes<T>()) {
      for (const std::int64_t depth : {1, 2, 37}) check_multiply_columns<T>(count, depth, cols);
    }
  }
  check_multiply_rows<true, T>(0, 3, 5);  // no rows: a thread that has none
  check_multiply_rows<true, T>(300, 100, 100);
  constexpr std::int64_t block = kDepthBlock<T>;
  check_multiply_rows<true, T>(45, block + 1, 2 * kPanel<T> - 1);  // a panel of `right` fits in no first-level cache
  check_multiply_rows<true, T>(45, 700, 600);                      // `right` fits in no second-level cache
  for (const std::int64_t depth : {block - 1, block, block + 1, 2 * block + 3}) {
    check_multiply_columns<T>(kPanel<T> + 3, depth, 2 * kPanel<T> - 1);
  }
  check_multiply_columns<T>(kMostSquares * kPanel<T> + 3, 2, 1);  // more panels than there are squares at once
}

// ---- Sums and transposes ------------------------------------------------------------------------------------------

template <class T>
void check_sum_rows() {
  Mixer mixer{7};
  for (const std::int64_t depth : {0, 1, 2, 3, 4, 5, 7, 8, 100}) {
    Matrix<T> matrix = random_matrix<T>(mixer, depth, kPanel<T>), weights = random_matrix<T>(mixer, depth, 1);
    PanelMatrix<T> in_panels(matrix, 1);
    for (const bool weighted : {false, true}) {
      for (std::int64_t start = 0; start < kPanel<T>; start += kLanes<T>) {
        T sums[kLanes<T>];
        store(sums, sum_rows(static_cast<const T*>(in_panels.data.data()) + start, depth,
                             weighted ? static_cast<const T*>(weights.data.data()) : nullptr));
        for (std::int64_t lane = 0; lane < kLanes<T>; ++lane) {
          T sum = 0;
          for (std::int64_t row = 0; row < depth; ++row) {
            sum += matrix.at(row, start + lane) * (weighted ? weights.at(row, 0) : T(1));
          }
          EXPECT(sums[lane] == sum);
        }
      }
    }
  }
  T lanes[kLanes<T>], total = 0;
  for (T& lane : lanes) total += lane = static_cast<T>(mixer.whole(100));
  EXPECT(sum_lanes(load<VectorOf<T>>(lanes)) == total);
}

template <class T>
void check_transpose() {
  Mixer mixer{8};
  for (const std::int64_t cols : column_sizes<T>()) {
    if (cols > kPanel<T>) continue;  // of one panel
    for (const std::int64_t rows : column_sizes<T>()) {
      for (const std::int64_t first_row : {0, 1, 5}) {
        for (const std::int64_t out_row : {std::int64_t{0}, std::int64_t{3}, kPanel<T>}) {
          for (const std::int64_t out_col : {std::int64_t{0}, std::int64_t{3}, std::int64_t{kLanes<T>}}) {
            Matrix<T> from = random_matrix<T>(mixer, first_row + rows, cols);
            PanelMatrix<T> from_panels(from, 1), to(out_row + cols, out_col + rows, 1);
            for (std::int64_t row = 0; row < to.rows; ++row) {
              for (std::int64_t col = 0; col < to.cols; ++col) to.view().at(row, col) = kMark<T>;
            }
            transpose_panel(from_panels.readable().panel(0), first_row, rows, cols, to.view(), out_row, out_col);
            int wrong = 0;
            for (std::int64_t row = 0; row < to.rows; ++row) {
              for (std::int64_t col = 0; col < to.cols; ++col) {
                const bool is_outside = row < out_row || col < out_col;
                wrong += to.view().at(row, col) !=
                         (is_outside ? kMark<T> : from.at(first_row + col - out_col, row - out_row));
              }
            }
            EXPECT(wrong == 0);
            EXPECT(to.is_whole());
          }
        }
      }
    }
  }
}

// ---- Adam -------------------------------------------------------------------------------------------------------

// Algorithm 1 of arXiv 1412.6980, in double.
void check_adam() {
  constexpr double lr = 0.01, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  Mixer mixer{9};
  double parameter = 0.5, m = 0, v = 0;
  AdamState<double> in_double = {parameter, 0, 0};
  AdamState<float> in_float = {static_cast<float>(parameter), 0, 0};
  for (std::int64_t step = 1; step <= 1000; ++step) {
    const double gradient = static_cast<float>(mixer.uniform());
    m = beta1 * m + (1 - beta1) * gradient;
    v = beta2 * v + (1 - beta2) * gradient * gradient;
    const double m_hat = m / (1 - std::pow(beta1, step)), v_hat = v / (1 - std::pow(beta2, step));
    parameter -= lr * m_hat / (std::sqrt(v_hat) + eps);
    in_double = adam_element(gradient, in_double, AdamFactors<double>::of(lr, beta1, beta2, eps, step));
    in_float =
        adam_element(static_cast<float>(gradient), in_float, AdamFactors<float>::of(lr, beta1, beta2, eps, step));
    EXPECT(std::fabs(in_double.parameter - parameter) < 1e-13);
    // A parameter of up to 1 is rounded once a step, by up to 3e-8, and the errors add up like a random walk.
    EXPECT(std::fabs(in_float.parameter - parameter) < 5e-6);
  }
  AdamState<double> still = {1.0, 0.0, 0.0};
  still = adam_element(0.0, still, AdamFactors<double>::of(lr, beta1, beta2, eps, 1));
  EXPECT(still.parameter == 1.0 && still.exp_avg == 0.0 && still.exp_avg_sq == 0.0);
}

template <class T>
void check_all() {
  check_layout<T>();
  check_products<T>();
  check_sum_rows<T>();
  check_transpose<T>();
}

int run() {
  std::printf("vectors of %d floats\n", kFloats);
  check_pieces();
  check_constants();
  check_all<float>();
  check_all<double>();
  check_adam();
  return report();
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

int main() { return sacfast::SACFAST_ISA::run(); }
