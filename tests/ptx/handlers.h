// What the handlers of arithmetic.cpp and bits.cpp share: types of PTX as types of C++, and what takes a handler's
// operands.
#pragma once

#include <type_traits>

#include "numbers.h"
#include "ptx.h"

namespace ptx {

template <class T>
constexpr bool kIsFloat = std::is_floating_point_v<T>;
template <class P>
using Pointed = std::remove_pointer_t<P>;

// Calls visit with a null pointer of the C++ type; returns null where PTX has no such instruction.
template <class Visit>
Handler with_float(Type type, const Visit& visit) {
  if (type.is(Kind::kFloat, 32)) return visit(static_cast<float*>(nullptr));
  if (type.is(Kind::kFloat, 64)) return visit(static_cast<double*>(nullptr));
  return nullptr;
}
template <class Visit>
Handler with_whole(Type type, const Visit& visit) {
  if (type.kind != Kind::kBits && type.kind != Kind::kUnsigned && type.kind != Kind::kSigned) return nullptr;
  const bool is_signed = type.kind == Kind::kSigned;
  switch (type.bits) {
    case 16:
      return is_signed ? visit(static_cast<std::int16_t*>(nullptr)) : visit(static_cast<std::uint16_t*>(nullptr));
    case 32:
      return is_signed ? visit(static_cast<std::int32_t*>(nullptr)) : visit(static_cast<std::uint32_t*>(nullptr));
    case 64:
      return is_signed ? visit(static_cast<std::int64_t*>(nullptr)) : visit(static_cast<std::uint64_t*>(nullptr));
    default:
      return nullptr;
  }
}
template <class Visit>
Handler with_number(Type type, const Visit& visit) {
  return type.kind == Kind::kFloat ? with_float(type, visit) : with_whole(type, visit);
}

template <class Operation, class T, char kRounding>
void binary(Slots s, const Instruction& i) {
  const T a = value<T>(s, i.a), b = value<T>(s, i.b);
  if constexpr (kRounding == 'n') {
    put<T>(s, i.to, Operation::of(a, b));
  } else {
    const Rounding rounding(kRounding);
    put<T>(s, i.to, Operation::of(a, b));
  }
}

template <class Operation, class T>
void unary(Slots s, const Instruction& i) {
  put<T>(s, i.to, Operation::of(value<T>(s, i.a)));
}
template <class Operation>
Handler unary_of(Type type) {
  return with_number(type, [](auto* t) -> Handler { return unary<Operation, Pointed<decltype(t)>>; });
}
}  // namespace ptx
