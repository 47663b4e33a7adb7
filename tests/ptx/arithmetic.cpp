// Handlers of arithmetic on numbers. PTX ISA, chapters 9.7.1 to 9.7.5.
#include <algorithm>
#include <cmath>

#include "handlers.h"

namespace ptx {
namespace {

// Signed overflow wraps around in PTX.
template <class T>
using WrappingOf = typename std::conditional_t<kIsFloat<T>, std::enable_if<true, T>, std::make_unsigned<T>>::type;

template <class T>
T wrapped(T a, T b, char operation) {
  using W = std::conditional_t<sizeof(T) == 2 && !kIsFloat<T>, std::uint32_t, WrappingOf<T>>;
  const W x = static_cast<W>(a), y = static_cast<W>(b);
  return static_cast<T>(operation == '+' ? x + y : operation == '-' ? x - y : x * y);
}

// ---- Two operands -------------------------------------------------------------------------------------------------
struct Add {
  template <class T>
  static T of(T a, T b) {
    return wrapped(a, b, '+');
  }
};
struct Subtract {
  template <class T>
  static T of(T a, T b) {
    return wrapped(a, b, '-');
  }
};
struct Multiply {
  template <class T>
  static T of(T a, T b) {
    return wrapped(a, b, '*');
  }
};
// Of whole numbers by zero: an unspecified value; all ones here, as GPUs return it.
struct Divide {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>)
      return a / b;
    else if (b == 0)
      return static_cast<T>(~T(0));
    else if (std::is_signed_v<T> && b == T(-1))
      return wrapped(T(0), a, '-');
    else
      return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>)
      return a;
    else if (b == 0)
      return a;
    else if (std::is_signed_v<T> && b == T(-1))
      return 0;
    else
      return static_cast<T>(a % b);
  }
};
// Of a number and a NaN the number; of the zeros the negative one.
struct Minimum {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>) {
      if (std::isnan(a)) return b;
      if (a == b) return std::signbit(a) ? a : b;
      return b < a ? b : a;
    }
    return std::min(a, b);
  }
};
struct Maximum {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>) {
      if (std::isnan(a)) return b;
      if (a == b) return std::signbit(a) ? b : a;
      return a < b ? b : a;
    }
    return std::max(a, b);
  }
};
// The magnitude of the second with the sign of the first.
struct CopySign {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>) return std::copysign(b, a);
    return a;
  }
};

// ---- One operand --------------------------------------------------------------------------------------------------

struct Absolute {
  template <class T>
  static T of(T a) {
    if constexpr (kIsFloat<T>) return std::fabs(a);
    return a < T(0) ? wrapped(T(0), a, '-') : a;
  }
};
struct Negate {
  template <class T>
  static T of(T a) {
    if constexpr (kIsFloat<T>) return -a;
    return wrapped(T(0), a, '-');
  }
};
struct Root {
  template <class T>
  static T of(T a) {
    return std::sqrt(a);
  }
};
struct Reciprocal {
  template <class T>
  static T of(T a) {
    return T(1) / a;
  }
};
struct ReciprocalRoot {
  template <class T>
  static T of(T a) {
    return static_cast<T>(1.0 / std::sqrt(static_cast<double>(a)));
  }
};
struct PowerOfTwo {
  template <class T>
  static T of(T a) {
    return static_cast<T>(std::exp2(static_cast<double>(a)));
  }
};
struct LogarithmOfTwo {
  template <class T>
  static T of(T a) {
    return static_cast<T>(std::log2(static_cast<double>(a)));
  }
};
struct Sine {
  template <class T>
  static T of(T a) {
    return static_cast<T>(std::sin(static_cast<double>(a)));
  }
};
struct Cosine {
  template <class T>
  static T of(T a) {
    return static_cast<T>(std::cos(static_cast<double>(a)));
  }
};

// ex2.approx.ftz: subnormals count as zeros, before and after.
void power_of_two_flushed(Slots s, const Instruction& i) {
  const auto flushed = [](float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; };
  put<float>(s, i.to, flushed(PowerOfTwo::of(flushed(value<float>(s, i.a)))));
}

// rcp.approx.ftz.f64: the upper half of the result; the lower one is zero.
void reciprocal_rough(Slots s, const Instruction& i) {
  put<double>(s, i.to, 1.0 / value<double>(s, i.a));
  s[i.to] &= ~std::uint64_t{0xffffffff};
}

// ---- Three operands -----------------------------------------------------------------------------------------------
template <class T, char kRounding>
void fused_multiply_add(Slots s, const Instruction& i) {
  if constexpr (kRounding == 'n') {
    put<T>(s, i.to, std::fma(value<T>(s, i.a), value<T>(s, i.b), value<T>(s, i.c)));
  } else {
    const Rounding rounding(kRounding);
    put<T>(s, i.to, std::fma(value<T>(s, i.a), value<T>(s, i.b), value<T>(s, i.c)));
  }
}

template <class T>
void multiply_add_low(Slots s, const Instruction& i) {
  put<T>(s, i.to, wrapped(wrapped(value<T>(s, i.a), value<T>(s, i.b), '*'), value<T>(s, i.c), '+'));
}

template <class T, class Twice, bool kAdds>
void multiply_wide(Slots s, const Instruction& i) {
  const Twice product = static_cast<Twice>(static_cast<Twice>(value<T>(s, i.a)) * static_cast<Twice>(value<T>(s, i.b)));
  put<Twice>(s, i.to, kAdds ? wrapped(product, value<Twice>(s, i.c), '+') : product);
}

template <class T, class Twice>
void multiply_high(Slots s, const Instruction& i) {
  const Twice product = static_cast<Twice>(value<T>(s, i.a)) * static_cast<Twice>(value<T>(s, i.b));
  put<T>(s, i.to, static_cast<T>(product >> (8 * sizeof(T))));
}

// ---- Which handler ------------------------------------------------------------------------------------------------

char rounding_of(const Details& details) {
  return details.has("rz") ? 'z' : details.has("rm") ? 'm' : details.has("rp") ? 'p' : 'n';
}

template <class Operation>
Handler binary_of(const Details& details, Type type) {
  return with_number(type, [&](auto* t) -> Handler {
    using T = Pointed<decltype(t)>;
    if constexpr (!kIsFloat<T>) return binary<Operation, T, 'n'>;
    switch (rounding_of(details)) {
      case 'z':
        return binary<Operation, T, 'z'>;
      case 'm':
        return binary<Operation, T, 'm'>;
      case 'p':
        return binary<Operation, T, 'p'>;
      default:
        return binary<Operation, T, 'n'>;
    }
  });
}

template <class Operation>
Handler float_unary_of(Type type) {
  return with_float(type, [](auto* t) -> Handler { return unary<Operation, Pointed<decltype(t)>>; });
}

template <bool kAdds>
Handler wide_product_of(Type type) {
  if (type.is(Kind::kSigned, 32)) return multiply_wide<std::int32_t, std::int64_t, kAdds>;
  if (type.is(Kind::kUnsigned, 32)) return multiply_wide<std::uint32_t, std::uint64_t, kAdds>;
  if (type.is(Kind::kSigned, 16)) return multiply_wide<std::int16_t, std::int32_t, kAdds>;
  if (type.is(Kind::kUnsigned, 16)) return multiply_wide<std::uint16_t, std::uint32_t, kAdds>;
  return nullptr;
}

Handler high_product_of(Type type) {
  if (type.is(Kind::kSigned, 32)) return multiply_high<std::int32_t, std::int64_t>;
  if (type.is(Kind::kUnsigned, 32)) return multiply_high<std::uint32_t, std::uint64_t>;
  if (type.is(Kind::kSigned, 64)) return multiply_high<std::int64_t, __int128>;
  if (type.is(Kind::kUnsigned, 64)) return multiply_high<std::uint64_t, unsigned __int128>;
  return nullptr;
}

Handler fused_of(const Details& details, Type type) {
  return with_float(type, [&](auto* t) -> Handler {
    using T = Pointed<decltype(t)>;
    switch (rounding_of(details)) {
      case 'z':
        return fused_multiply_add<T, 'z'>;
      case 'm':
        return fused_multiply_add<T, 'm'>;
      case 'p':
        return fused_multiply_add<T, 'p'>;
      default:
        return fused_multiply_add<T, 'n'>;
    }
  });
}

Handler product_handler(const Details& details, Type type) {
  const bool adds = details.opcode == "mad";
  if (type.kind == Kind::kFloat) return adds ? fused_of(details, type) : binary_of<Multiply>(details, type);
  if (details.has("wide")) return adds ? wide_product_of<true>(type) : wide_product_of<false>(type);
  if (details.has("hi")) return adds ? nullptr : high_product_of(type);
  if (!adds) return binary_of<Multiply>(details, type);
  return with_whole(type, [](auto* t) -> Handler { return multiply_add_low<Pointed<decltype(t)>>; });
}

// Approximations are computed exactly here: a GPU's are near.
Handler function_handler(const Details& details, Type type) {
  const std::string& op = details.opcode;
  const bool flushes = details.has("ftz"), is_float = type.bits == 32;
  if (op == "ex2" && is_float) return flushes ? power_of_two_flushed : unary<PowerOfTwo, float>;
  if (op == "rcp" && flushes) return is_float ? nullptr : reciprocal_rough;
  if (flushes || rounding_of(details) != 'n') return nullptr;
  if (op == "rcp") return float_unary_of<Reciprocal>(type);
  if (op == "sqrt") return float_unary_of<Root>(type);
  if (op == "rsqrt") return float_unary_of<ReciprocalRoot>(type);
  if (op == "lg2") return float_unary_of<LogarithmOfTwo>(type);
  if (op == "sin") return float_unary_of<Sine>(type);
  if (op == "cos") return float_unary_of<Cosine>(type);
  return nullptr;
}

}  // namespace

Handler arithmetic_handler(const Details& details) {
  if (details.types.empty()) return nullptr;
  const std::string& op = details.opcode;
  const Type type = details.types[0];
  if (Handler found = function_handler(details, type)) return found;
  if (Handler found = bits_handler(details)) return found;
  // Of these no kernel has the rarer modifiers; one that is not known is refused.
  for (const char* refused : {"ftz", "sat", "NaN", "xorsign", "cc"}) {
    if (details.has(refused)) return nullptr;
  }
  if (op == "mul" || op == "mad") return product_handler(details, type);
  if (op == "fma") return fused_of(details, type);
  if (op == "add") return binary_of<Add>(details, type);
  if (op == "sub") return binary_of<Subtract>(details, type);
  if (op == "div") return binary_of<Divide>(details, type);
  if (op == "rem")
    return with_whole(type, [](auto* t) -> Handler { return binary<Remainder, Pointed<decltype(t)>, 'n'>; });
  if (op == "min") return binary_of<Minimum>(details, type);
  if (op == "max") return binary_of<Maximum>(details, type);
  if (op == "abs") return unary_of<Absolute>(type);
  if (op == "neg") return unary_of<Negate>(type);
  if (op == "copysign") return binary_of<CopySign>(details, type);
  return nullptr;
}

}  // namespace ptx
