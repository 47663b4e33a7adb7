// The headers of csrc/core without torch: accuracy of the vector functions against the C library in double (or long
// double), and exactness of everything that only moves or numbers elements.
//
//     test_core [thin]      thin: look at one in so many points of the dense ranges (default 1), for slow builds
//
// Prints the largest errors and exits with 1 if a check fails.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "core/losses.h"
#include "core/math.h"
#include "core/philox.h"
#include "core/simd.h"
#include "core/strided.h"
#include "core/tanh_gaussian.h"
#include "core/tile.h"
#include "expect.h"

namespace sacfast::SACFAST_ISA {
namespace {

// ---- Accuracy ---------------------------------------------------------------------------------------------------

constexpr double kSmallestNormal = 0x1p-126;

// One unit in the last place of float32 at a value.
double unit_at(long double value) {
  const double magnitude = std::max(static_cast<double>(std::fabs(value)), kSmallestNormal);
  return std::ldexp(1.0, std::ilogb(magnitude) - 23);
}

// The largest error of one function, against what its users rely on.
class Worst {
 public:
  Worst(const char* name, const char* range, const char* unit, double limit)
      : name_(name), range_(range), unit_(unit), limit_(limit) {}

  void add(float x, double error) {
    if (error <= worst_) return;
    // Also where the error is NaN: a result that is not a number never passes.
    worst_ = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    at_ = x;
  }
  void add_ulp(float x, float actual, long double exact) {
    add(x, static_cast<double>(std::fabs(actual - exact)) / unit_at(exact));
  }
  void add_absolute(float x, float actual, long double exact) {
    add(x, static_cast<double>(std::fabs(actual - exact)));
  }

  void report() const {
    const bool good = worst_ <= limit_;
    if (!good) ++failures;
    std::printf("%-24s %-26s %10.3g %-4s (limit %.3g) at %.9g%s\n", name_, range_, worst_, unit_, limit_,
                static_cast<double>(at_), good ? "" : "  FAILED");
  }

 private:
  const char* name_;
  const char* range_;
  const char* unit_;
  double limit_;
  double worst_ = 0.0;
  float at_ = 0.0f;
};

// Calls body(VecF) for points of [low, high], equally far apart.
template <class Body>
void for_linear(double low, double high, std::int64_t points, Body body) {
  for (std::int64_t i = 0; i <= points; i += kFloats) {
    VecF x;
    for (int lane = 0; lane < kFloats; ++lane) {
      const double at = std::min(1.0, static_cast<double>(i + lane) / static_cast<double>(points));
      x[lane] = static_cast<float>(low + (high - low) * at);
    }
    body(x);
  }
}

// Calls body(VecF) for every `stride`-th float of [low, high], both positive: as dense near zero as elsewhere.
template <class Body>
void for_floats(float low, float high, std::int64_t stride, Body body) {
  const std::int64_t first = bit_cast<std::uint32_t>(low), last = bit_cast<std::uint32_t>(high);
  for (std::int64_t bits = first; bits <= last; bits += stride * kFloats) {
    VecF x;
    for (int lane = 0; lane < kFloats; ++lane) {
      x[lane] = bit_cast<float>(static_cast<std::uint32_t>(std::min(last, bits + stride * lane)));
    }
    body(x);
  }
}

// Values of both signs: evenly spaced, and every magnitude down to the smallest normal number.
template <class Body>
void for_both_signs(float highest, std::int64_t thin, Body body) {
  for_linear(-highest, highest, 2'000'000 / thin, body);
  for_floats(0x1p-126f, highest, 2039 * thin, [&](VecF x) {
    body(x);
    body(VecF(-x));
  });
}

// From 127.5 log 2 on, the nearest power of two is 2^128, which is no float32.
constexpr float kHighestExponential = 88.37f;

void check_exponential(std::int64_t thin) {
  Worst exp_pair("exp_and_expm1, exp", "[-87, 88.37]", "ulp", 2.0);
  Worst expm1_pair("exp_and_expm1, expm1", "[-87, 88.37]", "ulp", 2.0);
  Worst exp_alone("exponential", "[-87, 88.37]", "ulp", 2.0);
  const auto look = [&](VecF x) {
    const ExpPair<VecF> pair = exp_and_expm1(x);
    const VecF alone = exponential(x);
    for (int lane = 0; lane < kFloats; ++lane) {
      const double exact = std::exp(static_cast<double>(x[lane]));
      exp_pair.add_ulp(x[lane], pair.exp[lane], exact);
      exp_alone.add_ulp(x[lane], alone[lane], exact);
      expm1_pair.add_ulp(x[lane], pair.expm1[lane], std::expm1(static_cast<double>(x[lane])));
    }
  };
  for_linear(-87.0, kHighestExponential, 4'000'000 / thin, look);
  for_both_signs(1.0f, thin, look);
  exp_pair.report();
  expm1_pair.report();
  exp_alone.report();
}

void check_exponential_of_negative(std::int64_t thin) {
  Worst worst("exponential_of_negative", "[-87, 0]", "ulp", 2.0);
  const auto look = [&](VecF x) {
    const VecF value = exponential_of_negative(x);
    for (int lane = 0; lane < kFloats; ++lane) {
      worst.add_ulp(x[lane], value[lane], std::exp(static_cast<double>(x[lane])));
    }
  };
  for_linear(-87.0, 0.0, 4'000'000 / thin, look);
  for_floats(0x1p-126f, 1.0f, 2039 * thin, [&](VecF x) { look(VecF(-x)); });
  worst.report();
  const auto at = [](float x) { return exponential_of_negative(broadcast<VecF>(x))[0]; };
  EXPECT(at(0.0f) == 1.0f);
  EXPECT(at(-std::numeric_limits<float>::infinity()) == 0.0f);
  EXPECT(at(-1e30f) == 0.0f);
  EXPECT(at(-110.0f) == 0.0f);
  EXPECT(std::isnan(at(std::nanf(""))));
}

void check_lane_sums() {
  VecF value{};
  for (int lane = 0; lane < kFloats; ++lane) value[lane] = static_cast<float>((lane * 7) % kFloats) - 3.0f;
  EXPECT(sum_of_lanes(value) == static_cast<float>(kFloats * (kFloats - 1) / 2 - 3 * kFloats));
  EXPECT(largest_of_lanes(value) == static_cast<float>(kFloats - 4));
  float numbers[2 * kFloats];
  for (int i = 0; i < 2 * kFloats; ++i) numbers[i] = static_cast<float>(i);
  VecI index{};
  for (int offset = 0; offset < 2 * kFloats; ++offset) {
    for (int lane = 0; lane < kFloats; ++lane) index[lane] = lane * 5 + offset;
    const VecF picked = pick(numbers, index);
    for (int lane = 0; lane < kFloats; ++lane) {
      EXPECT(picked[lane] == static_cast<float>((lane * 5 + offset) % (2 * kFloats)));
    }
  }
}

// Beyond the range: never falling, zero and infinity far out, and never NaN from a number.
void check_exponential_limits() {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto at = [](float x) { return exponential(broadcast<VecF>(x))[0]; };
  EXPECT(at(-infinity) == 0.0f);
  EXPECT(at(-1000.0f) == 0.0f);
  EXPECT(at(0.0f) == 1.0f);
  EXPECT(at(89.0f) == infinity);
  EXPECT(at(infinity) == infinity);
  EXPECT(std::isnan(at(std::nanf(""))));
  int not_increasing = 0;
  VecF before{};
  for_linear(80.0, 96.0, 100'000, [&](VecF x) {
    const VecF value = exponential(x);
    for (int lane = 0; lane < kFloats; ++lane) {
      const float previous = lane > 0 ? value[lane - 1] : before[kFloats - 1];
      if (!(value[lane] >= previous * (1.0f - 0x1p-21f))) ++not_increasing;
    }
    before = value;
  });
  EXPECT(not_increasing == 0);
}

void check_logarithms(std::int64_t thin) {
  Worst log_all("natural_log", "all normal numbers", "ulp", 2.0);
  Worst log_near_one("natural_log", "[1/2, 2]", "ulp", 2.0);
  for_floats(0x1p-126f, 0x1.fffffep127f, 997 * thin, [&](VecF x) {
    const VecF value = natural_log(x);
    for (int lane = 0; lane < kFloats; ++lane)
      log_all.add_ulp(x[lane], value[lane], std::log(static_cast<double>(x[lane])));
  });
  for_floats(0.5f, 2.0f, 5 * thin, [&](VecF x) {
    const VecF value = natural_log(x);
    for (int lane = 0; lane < kFloats; ++lane) {
      log_near_one.add_ulp(x[lane], value[lane], std::log(static_cast<double>(x[lane])));
    }
  });
  EXPECT(natural_log(broadcast<VecF>(1.0f))[0] == 0.0f);
  log_all.report();
  log_near_one.report();

  // 1 + x is rounded (half a unit of [1, 2)), then the logarithm is.
  Worst log_one_plus_small("log_one_plus", "[0, 1]", "abs", 0x1p-23);
  const auto look = [&](VecF x) {
    const VecF value = log_one_plus(x);
    for (int lane = 0; lane < kFloats; ++lane) {
      log_one_plus_small.add_absolute(x[lane], value[lane], std::log1p(static_cast<double>(x[lane])));
    }
  };
  for_linear(0.0, 1.0, 2'000'000 / thin, look);
  for_floats(0x1p-126f, 1.0f, 2039 * thin, look);
  log_one_plus_small.report();
}

void check_sincos(std::int64_t thin) {
  Worst sine("sincos_turns, sin", "[-1/2, 1/2] turns", "ulp", 2.0);
  Worst cosine("sincos_turns, cos", "[-1/2, 1/2] turns", "ulp", 2.0);
  Worst sine_absolute("sincos_turns, sin", "[-1/2, 1/2] turns", "abs", 0x1p-23);
  Worst cosine_absolute("sincos_turns, cos", "[-1/2, 1/2] turns", "abs", 0x1p-23);
  Worst unit_circle("sin^2 + cos^2 - 1", "[-1/2, 1/2] turns", "abs", 0x1p-22);
  constexpr long double two_pi = 6.283185307179586476925286766559L;
  for_both_signs(0.5f, thin, [&](VecF turns) {
    const SinCos<VecF> value = sincos_turns(turns);
    for (int lane = 0; lane < kFloats; ++lane) {
      // The reference is reduced too: the rounding of 2 pi t would show where sine or cosine vanishes.
      const double quarter = std::nearbyint(4.0 * static_cast<double>(turns[lane]));
      const long double rest = two_pi * (static_cast<long double>(turns[lane]) - quarter / 4.0);
      const long double s = std::sin(rest), c = std::cos(rest);
      const int quadrant = static_cast<int>(quarter) & 3;
      const long double exact_sin = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
      const long double exact_cos = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
      sine.add_ulp(turns[lane], value.sin[lane], exact_sin);
      cosine.add_ulp(turns[lane], value.cos[lane], exact_cos);
      sine_absolute.add_absolute(turns[lane], value.sin[lane], exact_sin);
      cosine_absolute.add_absolute(turns[lane], value.cos[lane], exact_cos);
      const double sin_d = value.sin[lane], cos_d = value.cos[lane];
      unit_circle.add(turns[lane], std::fabs(sin_d * sin_d + cos_d * cos_d - 1.0));
    }
  });
  for (const Worst* worst : {&sine, &cosine, &sine_absolute, &cosine_absolute, &unit_circle}) worst->report();
}

void check_square_root(std::int64_t thin) {
  Worst root("square_root", "all normal numbers", "ulp", 0.5);  // correctly rounded
  for_floats(0x1p-126f, 0x1.fffffep127f, 997 * thin, [&](VecF x) {
    const VecF value = square_root(x);
    for (int lane = 0; lane < kFloats; ++lane)
      root.add_ulp(x[lane], value[lane], std::sqrt(static_cast<double>(x[lane])));
  });
  EXPECT(square_root(VecF{})[0] == 0.0f);
  root.report();
}

void check_squash(std::int64_t thin) {
  Worst tanh_ulp("squash, tanh", "|z| <= 40", "ulp", 4.0);
  Worst slope_ulp("squash, 1 - tanh^2", "|z| <= 40", "ulp", 8.0);
  // log(1 - tanh^2) cancels at z = 0, so in absolute terms there, relative to its size further out.
  Worst log_slope("squash, log(1 - tanh^2)", "|z| <= 40, of max(1, |.|)", "ulp", 3.0);
  Worst slope_far("squash, 1 - tanh^2", "40 < |z| <= 1000", "abs", 0x1p-110);
  Worst log_slope_far("squash, log(1 - tanh^2)", "40 < |z| <= 1000", "ulp", 2.0);
  const auto exact_log_slope = [](long double z) {
    return 2.0L * (std::log(2.0L) - std::fabs(z) - std::log1p(std::exp(-2.0L * std::fabs(z))));
  };
  for_both_signs(40.0f, thin * 2, [&](VecF z) {
    const Squashed<VecF> value = squash(z);
    for (int lane = 0; lane < kFloats; ++lane) {
      const long double cosine = std::cosh(static_cast<long double>(z[lane])), exact_log = exact_log_slope(z[lane]);
      tanh_ulp.add_ulp(z[lane], value.tanh[lane], std::tanh(static_cast<long double>(z[lane])));
      slope_ulp.add_ulp(z[lane], value.slope[lane], 1.0L / (cosine * cosine));
      log_slope.add(z[lane], static_cast<double>(std::fabs(value.log_slope[lane] - exact_log)) /
                                 unit_at(std::max(1.0L, std::fabs(exact_log))));
    }
  });
  for_linear(40.0, 1000.0, 100'000 / thin, [&](VecF z) {
    const Squashed<VecF> value = squash(z), mirrored = squash(VecF(-z));
    for (int lane = 0; lane < kFloats; ++lane) {
      const long double cosine = std::cosh(static_cast<long double>(z[lane]));
      EXPECT(value.tanh[lane] == 1.0f && mirrored.tanh[lane] == -1.0f);
      EXPECT(mirrored.slope[lane] == value.slope[lane] && mirrored.log_slope[lane] == value.log_slope[lane]);
      slope_far.add_absolute(z[lane], value.slope[lane], 1.0L / (cosine * cosine));
      log_slope_far.add_ulp(z[lane], value.log_slope[lane], exact_log_slope(z[lane]));
    }
  });
  for (const Worst* worst : {&tanh_ulp, &slope_ulp, &log_slope, &slope_far, &log_slope_far}) worst->report();
}

// Unlike broadcast, it keeps the sign of a zero.
VecF filled(float value) {
  float lanes[kFloats];
  std::fill(lanes, lanes + kFloats, value);
  return load<VecF>(lanes);
}

void check_special_values() {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const Squashed<VecF> at_infinity = squash(broadcast<VecF>(-infinity));
  EXPECT(at_infinity.tanh[0] == -1.0f && at_infinity.log_slope[0] == -infinity);
  const Squashed<VecF> at_nan = squash(broadcast<VecF>(nan));
  EXPECT(std::isnan(at_nan.tanh[0]) && std::isnan(at_nan.slope[0]) && std::isnan(at_nan.log_slope[0]));
  const Squashed<VecF> at_minus_zero = squash(filled(-0.0f));
  EXPECT(at_minus_zero.tanh[0] == 0.0f && std::signbit(at_minus_zero.tanh[0]) && at_minus_zero.slope[0] == 1.0f);
  EXPECT(absolute(broadcast<VecF>(-infinity))[0] == infinity);
  EXPECT(with_sign_of(filled(2.0f), filled(-0.0f))[0] == -2.0f);
  EXPECT(with_sign_of(filled(-2.0f), filled(1.0f))[0] == 2.0f);
}

void check_larger() {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const float values[] = {-infinity, -1.5f, -0.0f, 0.0f, 1.5f, infinity};
  for (const float a : values) {
    for (const float b : values) {
      EXPECT(larger(filled(a), filled(b))[kFloats - 1] == std::max(a, b));
      EXPECT(larger(a, b) == std::max(a, b));
      EXPECT(larger(static_cast<double>(a), static_cast<double>(b)) == std::max(a, b));
    }
    EXPECT(std::isnan(larger(filled(a), filled(nan))[0]) && std::isnan(larger(a, nan)));
    EXPECT(larger(filled(nan), filled(a))[0] == a && larger(nan, a) == a);
  }
  VecF counting, other;
  for (int lane = 0; lane < kFloats; ++lane) counting[lane] = static_cast<float>(lane), other[lane] = kFloats / 2.0f;
  const VecF most = larger(counting, other);
  for (int lane = 0; lane < kFloats; ++lane) EXPECT(most[lane] == std::max(counting[lane], other[lane]));
}

// ---- Noise ------------------------------------------------------------------------------------------------------

// The published vectors of Random123 1.09 (kat_vectors). The fourth counter word carries our stream tag.
void check_philox_known_answers() {
  struct Case {
    std::uint32_t counter[4], key[2], expected[4];
  };
  constexpr Case cases[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
      {{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu},
       {0xffffffffu, 0xffffffffu},
       {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
      {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
       {0xa4093822u, 0x299f31d0u},
       {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}},
  };
  for (const Case& c : cases) {
    const std::uint64_t seed = static_cast<std::uint64_t>(c.key[1]) << 32 | c.key[0];
    const std::uint64_t offset = static_cast<std::uint64_t>(c.counter[3] ^ kStreamTag) << 32 | c.counter[2];
    const Philox4<std::uint32_t> out = philox<std::uint32_t>(c.counter[0], c.counter[1], seed, offset);
    EXPECT(out.x == c.expected[0] && out.y == c.expected[1] && out.z == c.expected[2] && out.w == c.expected[3]);
  }
}

void check_philox_vector_equals_scalar() {
  Mixer mixer{1};
  int different = 0;
  for (int trial = 0; trial < 20'000; ++trial) {
    const std::uint64_t seed = mixer(), offset = mixer();
    VecU low, high;
    for (int lane = 0; lane < kFloats; ++lane) {
      low[lane] = static_cast<std::uint32_t>(mixer());
      high[lane] = static_cast<std::uint32_t>(mixer());
    }
    const Philox4<VecU> all = philox<VecU>(low, high, seed, offset);
    for (int lane = 0; lane < kFloats; ++lane) {
      const Philox4<std::uint32_t> one = philox<std::uint32_t>(low[lane], high[lane], seed, offset);
      different += one.x != all.x[lane] || one.y != all.y[lane] || one.z != all.z[lane] || one.w != all.w[lane];
    }
  }
  EXPECT(different == 0);
}

// The radius and angle of Box-Muller in double, from a float32 uniform number as the vector code has it.
void normals_of_rounded_words(std::uint64_t counter, std::uint64_t seed, std::uint64_t offset, double out[4]) {
  const Philox4<std::uint32_t> bits = philox<std::uint32_t>(static_cast<std::uint32_t>(counter),
                                                            static_cast<std::uint32_t>(counter >> 32), seed, offset);
  const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  for (int pair = 0; pair < 2; ++pair) {
    const float radius_word = static_cast<float>(words[2 * pair] >> 1);
    const float uniform = static_cast<float>(static_cast<double>(radius_word) * 0x1p-31 + 0x1p-32);
    const double turns = static_cast<float>(static_cast<std::int32_t>(words[2 * pair + 1])) * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(static_cast<double>(uniform)));
    out[2 * pair] = radius * std::cos(6.283185307179586476925 * turns);
    out[2 * pair + 1] = radius * std::sin(6.283185307179586476925 * turns);
  }
}

// Float and double noise come from the same bits. The first counters, and those around a carry into the high word.
void check_normals() {
  Worst to_rounded("normals, float", "2^18 normals", "abs", 1.5e-6);  // 3 ulp of values up to 6.7
  // float32 rounds the uniform number to 2^-25 near one, where radius = sqrt(-2 log u) has an infinite slope.
  Worst to_double("normals, float - double", "2^18 normals", "abs", std::sqrt(2.0 * 0x1p-25) + 1.5e-6);
  constexpr std::int64_t first_groups[] = {0, (std::int64_t{1} << 28) - 512, std::int64_t{1} << 28,
                                           std::int64_t{1} << 40};
  int misplaced = 0;
  for (const std::int64_t first : first_groups) {
    for (std::int64_t group = first; group < first + 1024; ++group) {
      float floats[kNoiseGroup];
      double doubles[kNoiseGroup];
      normals_of_group(group, 42, 7, floats);
      normals_of_group(group, 42, 7, doubles);
      for (int lane = 0; lane < kNoiseLanes; ++lane) {
        const std::uint64_t counter =
            static_cast<std::uint64_t>(group) * kNoiseLanes + static_cast<std::uint64_t>(lane);
        double rounded[4], exact[4];
        normals_of_rounded_words(counter, 42, 7, rounded);
        normals_of_counter(counter, 42, 7, exact);
        for (int output = 0; output < 4; ++output) {
          const int element = 16 * output + lane;
          misplaced += doubles[element] != exact[output];
          to_rounded.add_absolute(floats[element], floats[element], rounded[output]);
          to_double.add_absolute(floats[element], floats[element], doubles[element]);
        }
      }
    }
  }
  EXPECT(misplaced == 0);
  to_rounded.report();
  to_double.report();
}

template <class T>
void check_fill_ragged() {
  constexpr std::int64_t all = 5 * kNoiseGroup;
  std::vector<T> whole(all);
  fill_normals<T>(0, all, 3, 9, whole.data());
  int different = 0, overrun = 0;
  constexpr std::int64_t firsts[] = {0, 1, 15, 16, 63, 64, 65, 100, 127, 128, 191};
  constexpr std::int64_t counts[] = {0, 1, 2, 17, 63, 64, 65, 127, 128, 129};
  for (const std::int64_t first : firsts) {
    for (const std::int64_t count : counts) {
      std::vector<T> part(static_cast<std::size_t>(count) + 1, T(99));
      fill_normals<T>(first, count, 3, 9, part.data());
      for (std::int64_t i = 0; i < count; ++i) different += part[i] != whole[first + i];
      overrun += part[count] != T(99);
    }
  }
  EXPECT(different == 0);
  EXPECT(overrun == 0);
}

// ---- Vectors, views and tiles -----------------------------------------------------------------------------------

void check_partial_vectors() {
  float source[kFloats];
  for (int i = 0; i < kFloats; ++i) source[i] = static_cast<float>(i + 1);
  for (std::int64_t count = 1; count <= kFloats; ++count) {
    const std::vector<float> exactly(source, source + count);  // of its own size: a sanitizer sees a read beyond
    const VecF value = load_partial<VecF>(exactly.data(), count);
    for (int lane = 0; lane < kFloats; ++lane) EXPECT(value[lane] == (lane < count ? source[lane] : 0.0f));
    std::vector<float> out(static_cast<std::size_t>(count) + 1, -1.0f);
    store_partial<VecF>(out.data(), value, count);
    for (std::int64_t i = 0; i < count; ++i) EXPECT(out[i] == source[i]);
    EXPECT(out[count] == -1.0f);
  }
}

template <class V>
void check_for_each_vector() {
  using T = typename LanesOf<V>::Scalar;
  for (std::int64_t n = 0; n <= 3 * LanesOf<V>::count + 1; ++n) {
    std::vector<T> in(static_cast<std::size_t>(n)), out(static_cast<std::size_t>(n), T(-1));
    for (std::int64_t i = 0; i < n; ++i) in[i] = T(i + 1);
    std::int64_t next = 0;
    for_each_vector<V>(n, [&](std::int64_t i, auto vector) {
      EXPECT(i == next);
      next = i + LanesOf<V>::count;
      vector.store(out.data() + i, V(vector.load(in.data() + i) * T(2)));
    });
    for (std::int64_t i = 0; i < n; ++i) EXPECT(out[i] == T(2) * in[i]);
    EXPECT(next >= n && next < n + LanesOf<V>::count);
  }
}

void check_dense_tile() {
  constexpr std::int64_t rows = 6, cols = 10;
  float data[rows * cols], scratch[rows * cols];
  bool mask[rows * cols];
  for (int i = 0; i < rows * cols; ++i) {
    data[i] = static_cast<float>(i);
    mask[i] = i % 3 == 0;
  }
  const auto equals = [&](const float* tile, const auto& view, std::int64_t row, std::int64_t count, std::int64_t col,
                          std::int64_t width) {
    for (std::int64_t r = 0; r < count; ++r) {
      for (std::int64_t c = 0; c < width; ++c) {
        if (tile[r * width + c] != static_cast<float>(element(view, row + r, col + c))) return false;
      }
    }
    return true;
  };
  const Strided<float> dense{data, cols, 1}, transposed{data, 1, cols}, second_columns{data, cols, 2};
  const Strided<float> one_row{data, 0, 1}, one_column{data, cols, 0}, one_value{data + 7, 0, 0};
  const Strided<bool> flags{mask, cols, 1};
  EXPECT(dense_tile(dense, 2, 3, 0, cols, scratch) == data + 2 * cols);   // in place: whole rows
  EXPECT(dense_tile(dense, 4, 1, 3, 5, scratch) == data + 4 * cols + 3);  // in place: a part of one row
  EXPECT(dense_tile(dense, 1, 2, 3, 5, scratch) == scratch);              // copied: parts of two rows
  EXPECT(equals(scratch, dense, 1, 2, 3, 5));
  EXPECT(equals(dense_tile(transposed, 1, 4, 2, 4, scratch), transposed, 1, 4, 2, 4));
  EXPECT(equals(dense_tile(second_columns, 1, 4, 1, 4, scratch), second_columns, 1, 4, 1, 4));
  EXPECT(equals(dense_tile(one_row, 1, 4, 0, cols, scratch), one_row, 1, 4, 0, cols));
  EXPECT(equals(dense_tile(one_column, 1, 4, 0, cols, scratch), one_column, 1, 4, 0, cols));
  EXPECT(equals(dense_tile(one_value, 3, 2, 0, cols, scratch), one_value, 3, 2, 0, cols));
  EXPECT(equals(dense_tile(flags, 1, 4, 0, cols, scratch), flags, 1, 4, 0, cols));
}

void check_tiles() {
  constexpr std::int64_t widths[] = {1, 3, 16, 17, 100, 1023, 1024, 1025, 3000};
  for (const std::int64_t cols : widths) {
    for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{7}, std::int64_t{1100}}) {
      constexpr std::int64_t begin = 2;
      std::vector<int> seen(static_cast<std::size_t>((begin + rows) * cols), 0);
      for_each_tile(begin, begin + rows, cols,
                    [&](std::int64_t row, std::int64_t count, std::int64_t col, std::int64_t width) {
                      EXPECT(count * width <= kTileElements);
                      for (std::int64_t r = row; r < row + count; ++r) {
                        for (std::int64_t c = col; c < col + width; ++c) ++seen[static_cast<std::size_t>(r * cols + c)];
                      }
                    });
      const auto start = seen.begin() + begin * cols;
      EXPECT(std::all_of(seen.begin(), start, [](int times) { return times == 0; }));
      EXPECT(std::all_of(start, seen.end(), [](int times) { return times == 1; }));
    }
  }
  for_each_tile(0, 0, 5, [](auto...) { EXPECT(!"no rows, no tiles"); });
}

// A minibatch of four; all numbers are sums of powers of two, so every result is exact.
template <class T>
void check_losses() {
  const SoftTarget<T> target{T(0.5), T(0.25)};
  EXPECT(target(T(1), T(0), T(3), T(2), T(-4)) == T(2));
  EXPECT(target(T(1), T(1), T(3), T(2), T(-4)) == T(1));
  EXPECT(target(T(1), T(0), T(8)) == T(3));

  const auto error = SquaredError<T>::of(critic_loss_weight(false), 4);
  EXPECT(error(T(5), T(2)) == T(1.5));
  EXPECT(SquaredError<T>::of(kValueLossWeight, 4)(T(5), T(2)) == T(0.75));

  const auto mean = [](double sum) { return sum / 4; };
  CriticSums critics;
  critics.add(1, 2, 3);
  critics.add(3, 3, 1);
  const CriticLosses losses = critics.losses(critic_loss_weight(true), mean);
  EXPECT(losses.loss == 0.5 * 13 / 4 && losses.q_mean == 0.5 * 9 / 4 && losses.target_mean == 1);
  PolicySums policy;
  policy.add(2, -1);
  policy.add_value(5, 2);
  const PolicyLosses of_policy = policy.losses(mean);
  EXPECT(of_policy.actor_loss == -0.5 && of_policy.log_prob_mean == -0.25 && of_policy.value_loss == 9.0 / 8);
}

int run(std::int64_t thin) {
  std::printf("vectors of %d floats\n", kFloats);
  check_exponential(thin);
  check_exponential_limits();
  check_exponential_of_negative(thin);
  check_lane_sums();
  check_logarithms(thin);
  check_sincos(thin);
  check_square_root(thin);
  check_squash(thin);
  check_special_values();
  check_larger();
  check_losses<float>();
  check_losses<double>();
  check_philox_known_answers();
  check_philox_vector_equals_scalar();
  check_normals();
  check_fill_ragged<float>();
  check_fill_ragged<double>();
  check_partial_vectors();
  check_for_each_vector<VecF>();
  check_for_each_vector<float>();
  check_for_each_vector<double>();
  check_dense_tile();
  check_tiles();
  return report();
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

int main(int argc, char** argv) { return sacfast::SACFAST_ISA::run(argc > 1 ? std::max(1L, std::atol(argv[1])) : 1); }
