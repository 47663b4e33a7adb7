// Handlers of logic, shifts, comparisons, selections and moves. PTX ISA, chapters 9.7.1, 9.7.6, 9.7.8 and 9.7.9.
#include <algorithm>

#include "handlers.h"

namespace ptx {
namespace {

struct And {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a | b);
  }
};
struct ExclusiveOr {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a ^ b);
  }
};
struct Move {
  template <class T>
  static T of(T a) {
    return a;
  }
};
struct Not {
  template <class T>
  static T of(T a) {
    if constexpr (std::is_same_v<T, bool>)
      return !a;
    else
      return static_cast<T>(~a);
  }
};
template <class T>
void select(Slots s, const Instruction& i) {
  put<T>(s, i.to, value<bool>(s, i.c) ? value<T>(s, i.a) : value<T>(s, i.b));
}

// ---- Shifts and bits ----------------------------------------------------------------------------------------------
template <class T>
void shift_left(Slots s, const Instruction& i) {
  const auto by = value<std::uint32_t>(s, i.b);
  put<T>(s, i.to, by >= 8 * sizeof(T) ? T(0) : static_cast<T>(value<T>(s, i.a) << by));
}
template <class T>
void shift_right(Slots s, const Instruction& i) {
  constexpr std::uint32_t bits = 8 * sizeof(T);
  const auto by = value<std::uint32_t>(s, i.b);
  const T a = value<T>(s, i.a);
  put<T>(s, i.to, by < bits ? static_cast<T>(a >> by) : a < T(0) ? static_cast<T>(~T(0)) : T(0));
}
template <bool kLeft, bool kClamps>
void funnel_shift(Slots s, const Instruction& i) {
  const std::uint64_t both = std::uint64_t{value<std::uint32_t>(s, i.b)} << 32 | value<std::uint32_t>(s, i.a);
  const auto amount = value<std::uint32_t>(s, i.c);
  const std::uint32_t by = kClamps ? std::min(amount, 32u) : amount & 31u;
  put<std::uint32_t>(s, i.to, static_cast<std::uint32_t>(kLeft ? both << by >> 32 : both >> by));
}
template <class T>
void leading_zeros(Slots s, const Instruction& i) {
  const T a = value<T>(s, i.a);
  const int zeros = a == 0           ? 8 * int{sizeof(T)}
                    : sizeof(T) == 4 ? __builtin_clz(static_cast<unsigned>(a))
                                     : __builtin_clzll(a);
  put<std::uint32_t>(s, i.to, static_cast<std::uint32_t>(zeros));
}
template <class T>
void count_ones(Slots s, const Instruction& i) {
  put<std::uint32_t>(s, i.to, static_cast<std::uint32_t>(__builtin_popcountll(value<T>(s, i.a))));
}
// Bits of a, `length` of them, into b from `position` on.
template <class T>
void insert_bits(Slots s, const Instruction& i) {
  const std::uint32_t position = value<std::uint32_t>(s, i.c) & 255u, length = value<std::uint32_t>(s, i.d) & 255u;
  const T ones = length >= 8 * sizeof(T) ? static_cast<T>(~T(0)) : static_cast<T>((T(1) << length) - 1);
  const T mask = position >= 8 * sizeof(T) ? T(0) : static_cast<T>(ones << position);
  const T bits = position >= 8 * sizeof(T) ? T(0) : static_cast<T>(value<T>(s, i.a) << position);
  put<T>(s, i.to, static_cast<T>((value<T>(s, i.b) & ~mask) | (bits & mask)));
}
void permute_bytes(Slots s, const Instruction& i) {
  const std::uint64_t both = std::uint64_t{value<std::uint32_t>(s, i.b)} << 32 | value<std::uint32_t>(s, i.a);
  const auto selector = value<std::uint32_t>(s, i.c);
  std::uint32_t result = 0;
  for (int k = 0; k < 4; ++k) {
    const std::uint32_t choice = selector >> (4 * k) & 15u;
    std::uint32_t byte = static_cast<std::uint32_t>(both >> (8 * (choice & 7u))) & 255u;
    if ((choice & 8u) != 0) byte = (byte & 128u) != 0 ? 255u : 0u;
    result |= byte << (8 * k);
  }
  put<std::uint32_t>(s, i.to, result);
}

// ---- Comparisons --------------------------------------------------------------------------------------------------
enum class Comparison { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan };

// Float: without a u the comparison is false where a NaN takes part, with it true.
template <Comparison kHow, class T>
bool compare(T a, T b) {
  const bool ordered = !(a != a) && !(b != b);
  switch (kHow) {
    case Comparison::kEq:
      return ordered && a == b;
    case Comparison::kNe:
      return ordered && a != b;
    case Comparison::kLt:
      return a < b;
    case Comparison::kLe:
      return a <= b;
    case Comparison::kGt:
      return a > b;
    case Comparison::kGe:
      return a >= b;
    case Comparison::kEqu:
      return !ordered || a == b;
    case Comparison::kNeu:
      return !ordered || a != b;
    case Comparison::kLtu:
      return !ordered || a < b;
    case Comparison::kLeu:
      return !ordered || a <= b;
    case Comparison::kGtu:
      return !ordered || a > b;
    case Comparison::kGeu:
      return !ordered || a >= b;
    case Comparison::kNum:
      return ordered;
    case Comparison::kNan:
      return !ordered;
  }
  return false;
}

template <Comparison kHow, class T>
void set_predicate(Slots s, const Instruction& i) {
  put<bool>(s, i.to, compare<kHow, T>(value<T>(s, i.a), value<T>(s, i.b)));
}

// ---- Which handler ------------------------------------------------------------------------------------------------
template <class Operation>
Handler logic_of(Type type) {
  if (type.kind == Kind::kPredicate) return binary<Operation, bool, 'n'>;
  return with_whole(type, [](auto* t) -> Handler { return binary<Operation, Pointed<decltype(t)>, 'n'>; });
}
template <Comparison kHow>
Handler comparison_of(Type type) {
  return with_number(type, [](auto* t) -> Handler { return set_predicate<kHow, Pointed<decltype(t)>>; });
}

Handler comparison_handler(const Details& details) {
  using Chooser = Handler (*)(Type);
  static const std::map<std::string, Chooser> choosers = {
      {"eq", comparison_of<Comparison::kEq>},   {"ne", comparison_of<Comparison::kNe>},
      {"lt", comparison_of<Comparison::kLt>},   {"le", comparison_of<Comparison::kLe>},
      {"gt", comparison_of<Comparison::kGt>},   {"ge", comparison_of<Comparison::kGe>},
      {"lo", comparison_of<Comparison::kLt>},   {"ls", comparison_of<Comparison::kLe>},
      {"hi", comparison_of<Comparison::kGt>},   {"hs", comparison_of<Comparison::kGe>},
      {"equ", comparison_of<Comparison::kEqu>}, {"neu", comparison_of<Comparison::kNeu>},
      {"ltu", comparison_of<Comparison::kLtu>}, {"leu", comparison_of<Comparison::kLeu>},
      {"gtu", comparison_of<Comparison::kGtu>}, {"geu", comparison_of<Comparison::kGeu>},
      {"num", comparison_of<Comparison::kNum>}, {"nan", comparison_of<Comparison::kNan>}};
  // setp.lt.and and setp with two results: no kernel has them.
  if (details.modifiers.size() != 2 || details.to.size() != 1) return nullptr;
  const auto found = choosers.find(details.modifiers[0]);
  return found == choosers.end() ? nullptr : found->second(details.types[0]);
}

Handler selection_of(Type type) {
  switch (type.bits) {
    case 16:
      return select<std::uint16_t>;
    case 32:
      return select<std::uint32_t>;
    case 64:
      return select<std::uint64_t>;
    default:
      return nullptr;
  }
}

// mov between a register and a vector of parts of it.
template <class Part, int kParts>
void pack(Slots s, const Instruction& i) {
  const int from[] = {i.a, i.b, i.c, i.d};
  Part parts[kParts];
  for (int k = 0; k < kParts; ++k) parts[k] = value<Part>(s, from[k]);
  s[i.to] = 0;
  std::memcpy(s + i.to, parts, sizeof parts);
}
// The slots of the parts stand in to, b, c and d.
template <class Part, int kParts>
void unpack(Slots s, const Instruction& i) {
  const int to[] = {i.to, i.b, i.c, i.d};
  Part parts[kParts];
  std::memcpy(parts, s + i.a, sizeof parts);
  for (int k = 0; k < kParts; ++k) put<Part>(s, to[k], parts[k]);
}

Handler move_handler(const Details& details, Type type) {
  const std::size_t from = details.from.size(), to = details.to.size();
  if (from == 1 && to == 1) {
    return type.kind == Kind::kPredicate ? unary<Move, bool> : unary_of<Move>(type);
  }
  if (type.bits == 64 && from == 2) return pack<std::uint32_t, 2>;
  if (type.bits == 64 && to == 2) return unpack<std::uint32_t, 2>;
  if (type.bits == 64 && from == 4) return pack<std::uint16_t, 4>;
  if (type.bits == 64 && to == 4) return unpack<std::uint16_t, 4>;
  if (type.bits == 32 && from == 2) return pack<std::uint16_t, 2>;
  if (type.bits == 32 && to == 2) return unpack<std::uint16_t, 2>;
  return nullptr;
}

Handler logic_handler(const Details& details, Type type) {
  const std::string& op = details.opcode;
  const bool is_long = type.bits == 64;
  if (op == "and") return logic_of<And>(type);
  if (op == "or") return logic_of<Or>(type);
  if (op == "xor") return logic_of<ExclusiveOr>(type);
  if (op == "not" && type.kind == Kind::kPredicate) return unary<Not, bool>;
  if (op == "not") return with_whole(type, [](auto* t) -> Handler { return unary<Not, Pointed<decltype(t)>>; });
  if (op == "shl") return with_whole(type, [](auto* t) -> Handler { return shift_left<Pointed<decltype(t)>>; });
  if (op == "shr") return with_whole(type, [](auto* t) -> Handler { return shift_right<Pointed<decltype(t)>>; });
  if (op == "clz") return is_long ? leading_zeros<std::uint64_t> : leading_zeros<std::uint32_t>;
  if (op == "popc") return is_long ? count_ones<std::uint64_t> : count_ones<std::uint32_t>;
  if (op == "bfi") return is_long ? insert_bits<std::uint64_t> : insert_bits<std::uint32_t>;
  if (op == "prmt" && details.modifiers.size() == 1) return permute_bytes;
  if (op == "shf" && details.has("l"))
    return details.has("clamp") ? funnel_shift<true, true> : funnel_shift<true, false>;
  if (op == "shf") return details.has("clamp") ? funnel_shift<false, true> : funnel_shift<false, false>;
  return nullptr;
}

}  // namespace

// Null: it is not one of these.
Handler bits_handler(const Details& details) {
  const Type type = details.types[0];
  if (details.opcode == "mov") return move_handler(details, type);
  if (details.opcode == "setp") return comparison_handler(details);
  if (details.opcode == "selp") return selection_of(type);
  return logic_handler(details, type);
}

}  // namespace ptx
