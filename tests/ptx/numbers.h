// Numbers of PTX that C++ has no type for, and rounding.
#pragma once

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

// While it lives, arithmetic is rounded as an instruction's modifier says: n, z, m or p. Compile with -frounding-math.
class Rounding {
 public:
  explicit Rounding(char mode) : before_(std::fegetround()) {
    std::fesetround(mode == 'z' ? FE_TOWARDZERO : mode == 'm' ? FE_DOWNWARD : mode == 'p' ? FE_UPWARD : FE_TONEAREST);
  }
  ~Rounding() { std::fesetround(before_); }
  Rounding(const Rounding&) = delete;

 private:
  int before_;
};

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Round to nearest, ties to even. A NaN becomes the canonical one.
inline std::uint16_t brain_float(float value) {
  if (std::isnan(value)) return 0x7fff;
  const auto bits = same_bits<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline float from_brain_float(std::uint16_t bits) { return same_bits<float>(std::uint32_t{bits} << 16); }

inline std::uint16_t half_float(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7fff;
  const double size = std::fabs(static_cast<double>(value));
  // 65,520 lies half way between the largest number and what would be the next.
  if (size >= 65520.0) return static_cast<std::uint16_t>(sign | 0x7c00);
  int exponent = 0;
  std::frexp(size, &exponent);  // size = f 2^exponent, f in [1/2, 1)
  if (size == 0 || exponent < -13) exponent = -13;
  const double units = std::nearbyint(std::ldexp(size, 11 - exponent));  // of the last place
  // A number of `units` that reaches 2048 carries into the exponent, as the format wants it.
  return static_cast<std::uint16_t>(sign | (static_cast<int>(units) + (exponent + 13) * 1024));
}
inline float from_half_float(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>((bits & 0x8000) != 0 ? -size : size);
}

// float32 with the 10 mantissa bits of TF32, ties away from zero. The other bits are undefined: they are set to junk,
// so that code which relies on them fails.
inline std::uint32_t tensor_float(float value) {
  auto bits = same_bits<std::uint32_t>(value);
  if (std::isfinite(value)) bits += 0x1000u;
  return (bits & ~0x1fffu) | 0x0abcu;
}
inline float from_tensor_float(std::uint32_t bits) { return same_bits<float>(bits & ~0x1fffu); }

}  // namespace ptx
