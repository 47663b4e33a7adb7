// The tanh-squashed diagonal Gaussian policy, one element at a time (arXiv 1812.05905, appendix C).
//
//     z = mean + exp(log_std) * noise        action = scale * tanh(z)
//     log_prob = sum over A of [ -noise^2/2 - log_std - log(2 pi)/2 - log(1 - tanh(z)^2) - log|scale| ]
//
// log(1 - tanh^2) = 2 (log 2 - |z| - log(1 + exp(-2|z|))) is exact; there is no epsilon inside a logarithm, and z is
// never recovered from the action. V is a float, a double or a vector of floats.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "math.h"
#include "qualifiers.h"

namespace sacfast {

// How a network's raw output becomes a log standard deviation.
enum class LogStdBounding : int { kNone = 0, kClamp = 1, kTanh = 2 };

inline LogStdBounding bounding_of(const std::string& name) {
  if (name == "none") return LogStdBounding::kNone;
  if (name == "clamp") return LogStdBounding::kClamp;
  if (name == "tanh") return LogStdBounding::kTanh;
  throw std::invalid_argument("log_std_bounding: expected 'none', 'clamp' or 'tanh', got '" + name + "'");
}

namespace SACFAST_ISA {

// Calls body with the bounding as a compile-time constant.
template <class Body>
void with_bounding(LogStdBounding kind, const Body& body) {
  switch (kind) {
    case LogStdBounding::kClamp:
      return body(std::integral_constant<LogStdBounding, LogStdBounding::kClamp>{});
    case LogStdBounding::kTanh:
      return body(std::integral_constant<LogStdBounding, LogStdBounding::kTanh>{});
    case LogStdBounding::kNone:
      return body(std::integral_constant<LogStdBounding, LogStdBounding::kNone>{});
  }
}

template <class V>
struct LogStd {
  V value;
  V slope;  // d value / d raw
};

template <class V>
struct Squashed {
  V tanh;
  V slope;      // 1 - tanh^2 = 1 / cosh^2, which does not vanish where tanh rounds to one
  V log_slope;  // log(1 - tanh^2)
};

template <class V>
SACFAST_HD Squashed<V> squash(V z) {
  const V magnitude = absolute(z);
  const ExpPair<V> decay = exp_and_expm1(V(magnitude * constant<V>(-2.0)));  // exp(-2|z|)
  const V inverse = constant<V>(1.0) / (constant<V>(2.0) + decay.expm1);     // 1 / (1 + exp(-2|z|))
  const V tanh_magnitude = V(-decay.expm1 * inverse);
  return {with_sign_of(tanh_magnitude, z), constant<V>(4.0) * decay.exp * inverse * inverse,
          constant<V>(2.0) * (constant<V>(0.69314718055994530942) - magnitude - log_one_plus(decay.exp))};
}

template <LogStdBounding kBounding, class V>
SACFAST_HD LogStd<V> bound_log_std(V raw, V low, V high) {
  const V one = constant<V>(1.0), zero = constant<V>(0.0);
  if constexpr (kBounding == LogStdBounding::kClamp) {
    // NaN fails both tests and passes through; the slope at the bounds is one, as torch.clamp has it.
    return {raw < low ? low : (raw > high ? high : raw), raw < low ? zero : (raw > high ? zero : one)};
  } else if constexpr (kBounding == LogStdBounding::kTanh) {
    const V half_range = constant<V>(0.5) * (high - low);
    const Squashed<V> squashed = squash(raw);
    return {low + half_range * (squashed.tanh + one), half_range * squashed.slope};
  } else {
    return {raw, one};
  }
}

template <class V>
struct Sample {
  V action;    // unscaled, in [-1, 1]
  V log_prob;  // this element's share, without the action scale
};

template <class V>
SACFAST_HD V gaussian_log_density(V noise, V log_std) {
  return constant<V>(-0.5) * noise * noise - log_std - constant<V>(0.91893853320467274178);  // log(2 pi) / 2
}

template <class V>
SACFAST_HD Sample<V> sample_element(V mean, V log_std, V noise) {
  const Squashed<V> squashed = squash(V(mean + exponential(log_std) * noise));
  return {squashed.tanh, gaussian_log_density(noise, log_std) - squashed.log_slope};
}

template <class V>
struct MeanLogStdGrad {
  V mean;
  V log_std;
};

// grad_action is taken with respect to the unscaled action.
template <class V>
SACFAST_HD MeanLogStdGrad<V> sample_element_backward(V grad_action, V grad_log_prob, V mean, V log_std, V noise) {
  const V std_noise = exponential(log_std) * noise;
  const Squashed<V> squashed = squash(V(mean + std_noise));
  const V grad_z = grad_action * squashed.slope + grad_log_prob * (constant<V>(2.0) * squashed.tanh);
  return {grad_z, grad_z * std_noise - grad_log_prob};
}

// log_prob of a known pre-tanh value z.
template <class V>
SACFAST_HD V log_prob_element(V z, V mean, V log_std) {
  const V noise = (z - mean) * exponential(V(-log_std));
  return gaussian_log_density(noise, log_std) - squash(z).log_slope;
}

template <class V>
struct LogProbGrad {
  V z;
  V mean;
  V log_std;
};

template <class V>
SACFAST_HD LogProbGrad<V> log_prob_element_backward(V grad_log_prob, V z, V mean, V log_std) {
  const V inverse_std = exponential(V(-log_std));
  const V noise = (z - mean) * inverse_std;
  const V grad_mean = grad_log_prob * noise * inverse_std;
  return {grad_log_prob * (constant<V>(2.0) * squash(z).tanh) - grad_mean, grad_mean,
          grad_log_prob * (noise * noise - constant<V>(1.0))};
}

}  // namespace SACFAST_ISA
}  // namespace sacfast
