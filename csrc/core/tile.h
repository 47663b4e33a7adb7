// Cuts a matrix [rows, cols] into tiles whose scratch arrays stay in the first-level cache.
#pragma once

#include "qualifiers.h"

namespace sacfast::SACFAST_ISA {

constexpr std::int64_t kTileElements = 1024;

// Calls body(row, rows, col, cols): several whole rows, or a part of one row when a row is longer than a tile.
template <class Body>
SACFAST_HD void for_each_tile(std::int64_t row_begin, std::int64_t row_end, std::int64_t cols, Body body) {
  if (cols > kTileElements) {
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      for (std::int64_t col = 0; col < cols; col += kTileElements) {
        const std::int64_t left = cols - col;
        body(row, std::int64_t{1}, col, left < kTileElements ? left : kTileElements);
      }
    }
    return;
  }
  // A multiple of 64 rows where that fits makes every tile start on a noise group.
  const std::int64_t fitting = cols > 0 ? kTileElements / cols : kTileElements;
  const std::int64_t rows_per_tile = fitting >= 64 ? fitting / 64 * 64 : fitting;
  for (std::int64_t row = row_begin; row < row_end; row += rows_per_tile) {
    const std::int64_t left = row_end - row;
    body(row, left < rows_per_tile ? left : rows_per_tile, std::int64_t{0}, cols);
  }
}

}  // namespace sacfast::SACFAST_ISA
