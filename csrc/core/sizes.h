// Sums and products of sizes in memory, which are exact or an exception. Host only.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace sacfast {

[[noreturn]] inline void refuse_sizes() {
  throw std::length_error("sizes: expected those of a learner whose memory has addresses, got larger ones");
}

inline std::int64_t sum_of_sizes(std::int64_t a, std::int64_t b) {
  std::int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) refuse_sizes();
  return sum;
}

inline std::int64_t product_of_sizes(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) refuse_sizes();
  return product;
}

}  // namespace sacfast
