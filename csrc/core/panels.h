// Matrices as column panels, and the matrix product on them.
//
// A matrix [rows, cols] is cut into panels of kPanel columns (two native vectors); a panel holds its columns row by
// row, so the stride between rows is a constant of the instruction set. Every operand of every product of a multilayer
// perceptron is then read in order from few pages, whether it stands left, right or transposed:
//
//     multiply_rows     out[row, col]  = sum over k    of left[row, k] * right[k, col]       forward, input gradient
//     multiply_columns  out[i, col]    = sum over rows of left[row, i] * right[row, col]     weight gradient
//
// Columns beyond the last are zero and stay zero.
#pragma once

#include <type_traits>

#include "math.h"
#include "simd.h"

namespace sacfast::SACFAST_ISA {

template <class T>
using VectorOf = typename Widest<std::remove_const_t<T>>::type;
template <class T>
constexpr std::int64_t kLanes = LanesOf<VectorOf<T>>::count;
template <class T>
constexpr std::int64_t kPanel = 2 * kLanes<T>;

// Rows of an output tile: with two vectors a row, as many accumulators as the registers hold beside the operands.
template <class T>
constexpr int kTileRows = kVectorBytes == 64 ? 14 : 6;
template <>
constexpr int kTileRows<double> = 4;  // serves tests

// Bytes that may stay in a second-level cache beside what passes through it.
constexpr std::int64_t kStaysInCache = 512 << 10;

// Elements of a cache line.
template <class T>
constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));

// Whether the products prefetch memory into the caches. Measured: on Intel's Cascade Lake with AVX-512,
// whose large panels seldom stay in the first-level cache, an update gains 2 to 4 %; on AMD's Zen 3 with AVX2 these
// instructions cost products a tenth of their speed, because its hardware prefetches long runs well by itself.
constexpr bool kPrefetches = kVectorBytes == 64;

// How many rows ahead of the product its right-hand panel is prefetched into the first-level cache.
constexpr std::int64_t kRowsAhead = 16;

// How many steps of a product's inner loop are unrolled. Four gain a few percent on Zen 3; with AVX-512 they have not
// been measured.
constexpr int kStepsUnrolled = kVectorBytes == 64 ? 2 : 4;

// The number of rows of a panel that fill 16 KiB: they stay in the first-level cache while other memory passes through
// it.
template <class T>
constexpr std::int64_t kDepthBlock = (16 << 10) / (kPanel<T> * static_cast<std::int64_t>(sizeof(T)));

template <class T>
constexpr std::int64_t panel_count(std::int64_t cols) {
  return (cols + kPanel<T> - 1) / kPanel<T>;
}

// Vectors that have columns in the first panel of `cols` columns.
template <class T>
constexpr std::int64_t vectors_of_panel(std::int64_t cols) {
  return cols <= kLanes<T> ? 1 : 2;
}

template <class T>
constexpr std::int64_t panel_elements(std::int64_t rows, std::int64_t cols) {
  return panel_count<T>(cols) * rows * kPanel<T>;
}

template <class T>
struct Panels {
  T* data;
  std::int64_t stride;  // elements from one panel to the next

  T* panel(std::int64_t index) const { return data + index * stride; }
  Panels from_row(std::int64_t first) const { return {data + first * kPanel<T>, stride}; }
  Panels from_panel(std::int64_t first) const { return {panel(first), stride}; }
  T* row(std::int64_t panel_index, std::int64_t row) const { return panel(panel_index) + row * kPanel<T>; }
  T& at(std::int64_t row, std::int64_t col) const {
    return data[col / kPanel<T> * stride + row * kPanel<T> + col % kPanel<T>];
  }
};

template <class T>
constexpr Panels<T> panels(T* data, std::int64_t rows) {
  return {data, rows * kPanel<T>};
}

// The sums of one tile: kRows rows of kVectors vectors, kept in registers.
template <class T, int kRows, int kVectors>
struct Tile {
  using V = VectorOf<T>;
  V sum[kRows][kVectors];

  // Adds sum over k < count of left(row, k) * right[k, :]. Left is read along its rows, or, transposed, down its
  // columns: element (row, k) is left[row * kPanel + k], or left[k * kPanel + row].
  // With kAhead, each step prefetches the next cache line from `ahead` on into the second-level cache.
  template <bool kTransposed, bool kAhead = false>
  SACFAST_HD void add(const T* left, const T* right, std::int64_t count, const T* ahead = nullptr) {
    constexpr std::int64_t panel = kPanel<T>, lanes = kLanes<T>;
    // Two pointers, each amid the rows it serves: so the offsets are short enough for the instructions' short form.
    const T* low = kTransposed ? left : left + 4 * panel;
    const T* high = kTransposed ? left : left + 12 * panel;
#if defined(__GNUC__)
    asm("" : "+r"(low));
    asm("" : "+r"(high));
#endif
#pragma GCC unroll kStepsUnrolled
    for (std::int64_t k = 0; k < count; ++k) {
      V columns[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) columns[v] = load<V>(right + v * lanes);
      if constexpr (kAhead) __builtin_prefetch(ahead + k * kLine<T>, 0, 2);
      if constexpr (!kTransposed && kPrefetches) {
        for (int v = 0; v < kVectors; ++v) __builtin_prefetch(right + kRowsAhead * panel + v * lanes);
      }
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const V factor =
            broadcast<V>(kTransposed ? low[row] : (row < 8 ? low[(row - 4) * panel] : high[(row - 12) * panel]));
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[row][v] += factor * columns[v];
      }
      low += kTransposed ? panel : 1;
      if (!kTransposed) high += 1;
      right += panel;
    }
  }

  SACFAST_HD void fill(const T* row_of_all) {
    for (int v = 0; v < kVectors; ++v) {
      const V value = row_of_all == nullptr ? V{} : load<V>(row_of_all + v * kLanes<T>);
      for (int row = 0; row < kRows; ++row) sum[row][v] = value;
    }
  }
};

// Calls body(std::integral_constant<int, count>) for 1 <= count <= kMost.
template <int kMost, class Body>
SACFAST_HD void with_constant(std::int64_t count, Body body) {
  if constexpr (kMost == 1) {
    body(std::integral_constant<int, 1>{});
  } else {
    if (count == kMost) {
      body(std::integral_constant<int, kMost>{});
    } else {
      with_constant<kMost - 1>(count, body);
    }
  }
}

// `count` in the fewest pieces of at most `most`, of sizes that differ by one at most: `larger` of `size` + 1 come
// first.
struct Cut {
  std::int64_t pieces, size, larger;
};
constexpr Cut cut(std::int64_t count, std::int64_t most) {
  if (count == 0) return {0, 0, 0};
  const std::int64_t pieces = (count + most - 1) / most, size = count / pieces;
  return {pieces, size, count - size * pieces};
}

template <class Body>
SACFAST_HD void for_each_piece(std::int64_t begin, std::int64_t end, std::int64_t most, Body body) {
  const Cut into = cut(end - begin, most);
  for (std::int64_t piece = 0; piece < into.pieces; ++piece) {
    const std::int64_t count = into.size + (piece < into.larger ? 1 : 0);
    body(begin, count);
    begin += count;
  }
}

// Tiles of multiply_rows, one below the other: out of line, so that their registers are their own.
template <class T, int kRows, int kVectors, class Finish>
__attribute__((noinline)) void multiply_tiles(Panels<const T> left, std::int64_t row, std::int64_t tiles,
                                              std::int64_t depth, const T* right, const T* start, std::int64_t panel,
                                              const Finish finish) {
  for (; tiles > 0; --tiles, row += kRows) {
    Tile<T, kRows, kVectors> tile;
    tile.fill(start);
    for (std::int64_t k = 0, part = 0; k < depth; k += kPanel<T>, ++part) {
      const std::int64_t left_over = depth - k;
      tile.template add<false>(left.row(part, row), right + k * kPanel<T>,
                               left_over < kPanel<T> ? left_over : kPanel<T>);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) finish(row + r, panel, v * kLanes<T>, tile.sum[r][v]);
    }
  }
}

// For `rows` rows and every column of `right` [depth, cols]: calls finish(row, panel, column in it, vector) with the
// product left * right, plus the row that follows `right` in each of its panels when `kBiased`.
template <bool kBiased, class T, class Finish>
void multiply_rows(Panels<const T> left, std::int64_t rows, std::int64_t depth, Panels<const T> right,
                   std::int64_t cols, const Finish& finish) {
  // Three orders of work. A panel of `right` that fits in the first-level cache stays there for all rows of `left`.
  // Where it does not fit, the rows of one tile stay there, and all of `right` is read for them from the second-level
  // cache. Where `right` does not fit in that cache either, each of its panels is read once for all rows.
  const bool panel_stays = depth <= kDepthBlock<T>;
  const bool all_stays = panel_elements<T>(depth, cols) * static_cast<std::int64_t>(sizeof(T)) <= kStaysInCache;
  for_each_piece(0, rows, panel_stays || !all_stays ? rows : kTileRows<T>, [&](std::int64_t first, std::int64_t count) {
    const Cut into = cut(count, kTileRows<T>);
    for (std::int64_t panel = 0; panel < panel_count<T>(cols); ++panel) {
      const T* weights = right.panel(panel);
      const T* start = kBiased ? weights + depth * kPanel<T> : nullptr;
      const bool narrow = cols - panel * kPanel<T> <= kLanes<T>;
      const auto multiply = [&](std::int64_t row, std::int64_t tile_rows, std::int64_t tiles) {
        if (tiles == 0) return;
        with_constant<kTileRows<T>>(tile_rows, [&](auto constant) {
          constexpr int constant_rows = decltype(constant)::value;
          if (narrow) {
            multiply_tiles<T, constant_rows, 1>(left, row, tiles, depth, weights, start, panel, finish);
          } else {
            multiply_tiles<T, constant_rows, 2>(left, row, tiles, depth, weights, start, panel, finish);
          }
        });
      };
      multiply(first, into.size + 1, into.larger);
      multiply(first + into.larger * (into.size + 1), into.size, into.pieces - into.larger);
    }
  });
}

// While multiply_columns works, it prefetches the memory that its `finish` will need: a list of pieces, each as large
// as the sums of two panels. With kPrefetches, each step of the product prefetches one cache line. Otherwise each tile
// prefetches one piece in order to write it: other cores that have read its lines give them up before `finish` writes.
template <class T>
constexpr std::int64_t kSquareLines = kPanel<T> * kPanel<T> < kLine<T> ? 1 : kPanel<T> * kPanel<T> / kLine<T>;
template <class T>
constexpr std::int64_t kPieceLines = kSquareLines<T> < 16 ? 16 : kSquareLines<T>;

template <class T>
struct Pieces {
  const T *const *next, *const *end;
  const T* take() { return next < end ? *next++ : nullptr; }
};

// One tile of multiply_columns, added to `sums` [kRows, kPanel], or, at first, written there.
template <class T, int kRows, int kVectors>
__attribute__((noinline)) void multiply_transposed_tile(const T* left, const T* right, std::int64_t depth,
                                                        bool at_first, T* sums, Pieces<T>& pieces) {
  if (!at_first) {  // the earlier sums arrive from a slower cache while the product is made
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(sums + r * kPanel<T> + v * kLanes<T>);
    }
  }
  if (!kPrefetches) {
    if (const T* piece = pieces.take()) {
      for (std::int64_t line = 0; line < kSquareLines<T>; ++line) __builtin_prefetch(piece + line * kLine<T>, 1, 2);
    }
  }
  Tile<T, kRows, kVectors> tile;
  tile.fill(nullptr);
  for (std::int64_t k = 0; k < depth;) {
    const T* piece = kPrefetches ? pieces.take() : nullptr;
    if (piece == nullptr) {
      tile.template add<true>(left + k * kPanel<T>, right + k * kPanel<T>, depth - k);
      break;
    }
    const std::int64_t count = depth - k < kPieceLines<T> ? depth - k : kPieceLines<T>;
    tile.template add<true, true>(left + k * kPanel<T>, right + k * kPanel<T>, count, piece);
    k += count;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* out = sums + r * kPanel<T> + v * kLanes<T>;
      store(out, at_first ? tile.sum[r][v] : VectorOf<T>(load<VectorOf<T>>(out) + tile.sum[r][v]));
    }
  }
}

// Squares of kPanel x kPanel sums that multiply_columns makes at once, at most: of eight panels of each side.
constexpr std::int64_t kMostTogether = 8, kMostSquares = kMostTogether * kMostTogether;

// For every column i < count of `left` [depth, count] and the first `together` panels of `right` [depth, cols]: calls
// finish(first, columns, panel, sums) with sums [columns, kPanel] of left[row, i] * right[row, :], i from `first`. Sums
// of vectors without columns are not set.
//
// It works on many panels of `left` at a time, so that finish has long runs. With kPrefetches it works on only as many
// as of `right`, so that what it prefetches is still in the cache when finish needs it. pieces_of(first, end) lists the
// memory that finish needs for columns [first, end); it is prefetched while their last rows are multiplied. `scratch`
// holds [kMostSquares, kPanel, kPanel].
template <class T, class Finish, class PiecesOf>
void multiply_columns(Panels<const T> left, std::int64_t count, std::int64_t depth, Panels<const T> right,
                      std::int64_t cols, std::int64_t together, T* scratch, const Finish& finish,
                      const PiecesOf& pieces_of) {
  const auto in_steps = [](std::int64_t begin, std::int64_t end, std::int64_t step, const auto& body) {
    for (; begin < end; begin += step) body(begin, end - begin < step ? end - begin : step);
  };
  const std::int64_t at_once = (kPrefetches ? together : kMostSquares / together) * kPanel<T>;
  in_steps(0, count, at_once, [&](std::int64_t begin, std::int64_t columns) {
    const auto sums = [=](std::int64_t first, std::int64_t panel) {
      return scratch + (panel * at_once + first - begin) * kPanel<T>;
    };
    Pieces<T> pieces{};
    bool has_pieces = false;
    // Blocks of rows: the part of both operands in one block stays in the first-level cache.
    for_each_piece(0, depth, kDepthBlock<T>, [&](std::int64_t row, std::int64_t rows) {
      // The last two blocks have enough steps to prefetch all pieces; earlier, a piece might leave the cache before
      // use.
      if (!has_pieces && depth - row <= 2 * kDepthBlock<T>) {
        pieces = pieces_of(begin, begin + columns);
        has_pieces = true;
      }
      for (std::int64_t panel = 0; panel < together; ++panel) {
        const bool narrow = vectors_of_panel<T>(cols - panel * kPanel<T>) == 1;
        in_steps(begin, begin + columns, kPanel<T>, [&](std::int64_t first, std::int64_t panel_columns) {
          const T* factors = left.row(first / kPanel<T>, row);
          for_each_piece(0, panel_columns, kTileRows<T>, [&](std::int64_t column, std::int64_t tile_rows) {
            with_constant<kTileRows<T>>(tile_rows, [&](auto constant) {
              constexpr int constant_rows = decltype(constant)::value;
              const auto multiply = narrow ? &multiply_transposed_tile<T, constant_rows, 1>
                                           : &multiply_transposed_tile<T, constant_rows, 2>;
              multiply(factors + column, right.row(panel, row), rows, row == 0, sums(first, panel) + column * kPanel<T>,
                       pieces);
            });
          });
        });
      }
    });
    for (std::int64_t panel = 0; panel < together; ++panel) finish(begin, columns, panel, sums(begin, panel));
  });
}

// The sum over `depth` rows of one vector of a panel, each row multiplied by its weight if there are weights.
template <class T>
SACFAST_HD VectorOf<T> sum_rows(const T* column, std::int64_t depth, const T* weights = nullptr) {
  using V = VectorOf<T>;
  const auto term = [&](std::int64_t row) {
    const V value = load<V>(column + row * kPanel<T>);
    return weights == nullptr ? value : V(value * broadcast<V>(weights[row]));
  };
  V sums[4] = {};
  std::int64_t row = 0;
  for (; row + 4 <= depth; row += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] += term(row + i);
  }
  for (int i = 0; row + i < depth; ++i) sums[i] += term(row + i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class V>
SACFAST_HD typename LanesOf<V>::Scalar sum_lanes(V value) {
  if constexpr (LanesOf<V>::count == 1) {
    return value;
  } else {
    typename LanesOf<V>::Scalar total = 0;
    for (int lane = 0; lane < LanesOf<V>::count; ++lane) total += value[lane];
    return total;
  }
}

// Swaps the off-diagonal quarters of every square of 2 * kHalf lanes, for kHalf = 1, 2, ... half the lanes.
template <int kHalf>
SACFAST_HD void transpose_stage(VecF (&rows)[kFloats]) {
  VecI low{}, high{};
  for (int lane = 0; lane < kFloats; ++lane) {
    low[lane] = (lane & kHalf) == 0 ? lane : kFloats + lane - kHalf;
    high[lane] = (lane & kHalf) == 0 ? lane + kHalf : kFloats + lane;
  }
#pragma GCC unroll 16
  for (int row = 0; row < kFloats; ++row) {
    if ((row & kHalf) == 0) {
      const VecF a = rows[row], b = rows[row + kHalf];
      rows[row] = __builtin_shuffle(a, b, low);
      rows[row + kHalf] = __builtin_shuffle(a, b, high);
    }
  }
  if constexpr (2 * kHalf < kFloats) transpose_stage<2 * kHalf>(rows);
}

// Transposes a square of lanes x lanes elements between two panels.
SACFAST_HD void transpose_square(const float* from, float* to) {
  VecF rows[kFloats];
#pragma GCC unroll 16
  for (int row = 0; row < kFloats; ++row) rows[row] = load<VecF>(from + row * kPanel<float>);
  transpose_stage<1>(rows);
#pragma GCC unroll 16
  for (int row = 0; row < kFloats; ++row) store(to + row * kPanel<float>, rows[row]);
}

// Writes rows [first_row, first_row + rows) of one panel of `from`, columns [0, cols), to the transposed matrix:
// to(out_row + col, out_col + row - first_row) = from(row, col).
template <class T>
void transpose_panel(const T* from, std::int64_t first_row, std::int64_t rows, std::int64_t cols, Panels<T> to,
                     std::int64_t out_row, std::int64_t out_col) {
  constexpr std::int64_t lanes = kLanes<T>;
  const T* source = from + first_row * kPanel<T>;
  std::int64_t whole_rows = 0, whole_cols = 0;
  if constexpr (lanes > 1) {
    if (out_col % lanes == 0) whole_rows = rows / lanes * lanes, whole_cols = cols / lanes * lanes;
    for (std::int64_t row = 0; row < whole_rows; row += lanes) {
      for (std::int64_t col = 0; col < whole_cols; col += lanes) {
        transpose_square(source + row * kPanel<T> + col, &to.at(out_row + col, out_col + row));
      }
    }
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = row < whole_rows ? whole_cols : 0; col < cols; ++col) {
      to.at(out_row + col, out_col + row) = source[row * kPanel<T> + col];
    }
  }
}

}  // namespace sacfast::SACFAST_ISA
