// Handlers of cvt. PTX ISA, chapter 9.7.9.21.
#include <algorithm>
#include <cmath>
#include <limits>

#include "numbers.h"
#include "ptx.h"

namespace ptx {
namespace {

template <class From, class To>
void whole_to_whole(Slots s, const Instruction& i) {
  // A narrow result is extended to its register, which another instruction may read in full.
  const To result = static_cast<To>(value<From>(s, i.a));
  if constexpr (sizeof(To) < 4) {
    put<std::int32_t>(s, i.to, static_cast<std::int32_t>(result));
  } else {
    put<To>(s, i.to, result);
  }
}

template <class From, class To>
void whole_to_float(Slots s, const Instruction& i) {
  put<To>(s, i.to, static_cast<To>(value<From>(s, i.a)));
}

// What does not fit becomes the nearest number that does; a NaN becomes zero, or of 64 bits the smallest number.
template <class From, class To>
void float_to_whole(Slots s, const Instruction& i) {
  const From whole = std::trunc(value<From>(s, i.a));
  To result = 0;
  if (std::isnan(whole)) {
    result = sizeof(To) == 8 ? static_cast<To>(std::uint64_t{1} << 63) : To(0);
  } else if (whole >= std::ldexp(From(1), std::numeric_limits<To>::digits)) {
    result = std::numeric_limits<To>::max();
  } else if (whole <= static_cast<From>(std::numeric_limits<To>::min())) {
    result = std::numeric_limits<To>::min();
  } else {
    result = static_cast<To>(whole);
  }
  put<To>(s, i.to, result);
}

template <class From, class To>
void float_to_float(Slots s, const Instruction& i) {
  put<To>(s, i.to, static_cast<To>(value<From>(s, i.a)));
}
template <class T>
void to_integral(Slots s, const Instruction& i) {
  put<T>(s, i.to, std::nearbyint(value<T>(s, i.a)));
}
template <class T>
void truncated(Slots s, const Instruction& i) {
  put<T>(s, i.to, std::trunc(value<T>(s, i.a)));
}
// Into [0, 1]; a NaN becomes zero.
void saturated(Slots s, const Instruction& i) {
  const float a = value<float>(s, i.a);
  put<float>(s, i.to, std::isnan(a) ? 0.0f : std::min(1.0f, std::max(0.0f, a)));
}

void to_half(Slots s, const Instruction& i) { put<std::uint16_t>(s, i.to, half_float(value<float>(s, i.a))); }
void of_half(Slots s, const Instruction& i) { put<float>(s, i.to, from_half_float(value<std::uint16_t>(s, i.a))); }
void to_brain(Slots s, const Instruction& i) { put<std::uint16_t>(s, i.to, brain_float(value<float>(s, i.a))); }
void of_brain(Slots s, const Instruction& i) { put<float>(s, i.to, from_brain_float(value<std::uint16_t>(s, i.a))); }
// The first operand goes to the upper half.
void to_brain_pair(Slots s, const Instruction& i) {
  const std::uint32_t high = brain_float(value<float>(s, i.a)), low = brain_float(value<float>(s, i.b));
  put<std::uint32_t>(s, i.to, high << 16 | low);
}
void to_tensor_float(Slots s, const Instruction& i) { put<std::uint32_t>(s, i.to, tensor_float(value<float>(s, i.a))); }

template <class Visit>
Handler with_whole(Type type, const Visit& visit) {
  const bool is_signed = type.kind == Kind::kSigned;
  if (!is_signed && type.kind != Kind::kUnsigned) return nullptr;
  switch (type.bits) {
    case 8:
      return is_signed ? visit(std::int8_t()) : visit(std::uint8_t());
    case 16:
      return is_signed ? visit(std::int16_t()) : visit(std::uint16_t());
    case 32:
      return is_signed ? visit(std::int32_t()) : visit(std::uint32_t());
    default:
      return is_signed ? visit(std::int64_t()) : visit(std::uint64_t());
  }
}

Handler from_float(const Details& details, Type to, Type from) {
  const bool wide = from.bits == 64;
  if (details.has("rna")) return to.kind == Kind::kTensorFloat && !wide ? to_tensor_float : nullptr;
  if (details.has("bf16x2")) return details.has("rn") && !wide && details.from.size() == 2 ? to_brain_pair : nullptr;
  if (to.is(Kind::kBrainFloat, 16)) return details.has("rn") && !wide ? to_brain : nullptr;
  if (to.is(Kind::kFloat, 16)) return details.has("rn") && !wide ? to_half : nullptr;
  if (to.kind == Kind::kFloat && to.bits == from.bits) {
    if (details.has("sat")) return wide ? nullptr : saturated;
    if (details.has("rni")) return wide ? to_integral<double> : to_integral<float>;
    if (details.has("rzi")) return wide ? truncated<double> : truncated<float>;
    return nullptr;
  }
  if (to.kind == Kind::kFloat && wide) return details.has("rn") ? float_to_float<double, float> : nullptr;
  if (to.kind == Kind::kFloat) return float_to_float<float, double>;
  if (!details.has("rzi")) return nullptr;
  return with_whole(to, [&](auto t) -> Handler {
    using To = decltype(t);
    return wide ? float_to_whole<double, To> : float_to_whole<float, To>;
  });
}

}  // namespace

Handler conversion_handler(const Details& details) {
  if (details.types.size() != 2 || details.has("ftz")) return nullptr;
  const Type to = details.types[0], from = details.types[1];
  if (from.is(Kind::kFloat, 16)) return to.is(Kind::kFloat, 32) ? of_half : nullptr;
  if (from.is(Kind::kBrainFloat, 16)) return to.is(Kind::kFloat, 32) ? of_brain : nullptr;
  if (from.kind == Kind::kFloat) return from_float(details, to, from);
  if (details.has("sat")) return nullptr;
  return with_whole(from, [&](auto f) -> Handler {
    using From = decltype(f);
    if (to.kind == Kind::kFloat && !details.has("rn")) return nullptr;
    if (to.is(Kind::kFloat, 32)) return whole_to_float<From, float>;
    if (to.is(Kind::kFloat, 64)) return whole_to_float<From, double>;
    return with_whole(to, [](auto t) -> Handler { return whole_to_whole<From, decltype(t)>; });
  });
}

}  // namespace ptx
