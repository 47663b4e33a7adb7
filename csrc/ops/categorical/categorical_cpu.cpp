// CPU twin, compiled once for each instruction set.
#include "categorical.h"

#include <limits>
#include <vector>

#include "../../core/categorical.h"
#include "../../core/simd.h"

namespace sacfast::SACFAST_ISA {
namespace {

// exp(logit - largest logit) of a row, not yet divided by its sum.
template <class T>
struct ExpRow {
  T largest;
  T sum;
};

template <class V, class T>
ExpRow<T> exp_row(const T* logits, std::int64_t atoms, T* exps) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  V largest_lanes = broadcast<V>(lowest);
  for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
    largest_lanes = larger(vector.load_or(logits + j, lowest), largest_lanes);
  });
  const T largest = largest_of_lanes(largest_lanes);
  V sum{};
  for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
    const V value = exponential(V(vector.load_or(logits + j, lowest) - broadcast<V>(largest)));
    vector.store(exps + j, value);
    sum += value;
  });
  return {largest, sum_of_lanes(sum)};
}

template <class V, class T>
T dot(const T* a, const T* b, std::int64_t count) {
  V sum{};
  for_each_vector<V>(count, [&](std::int64_t j, auto vector) { sum += vector.load(a + j) * vector.load(b + j); });
  return sum_of_lanes(sum);
}

// Splits each mass between the two atoms around its position. Positions are in [0, M - 1] or NaN.
template <class T>
void project(const T* masses, const T* positions, T scale, std::int64_t atoms, T* target) {
  const std::int64_t last_lower = atoms > 1 ? atoms - 2 : 0;
  for (std::int64_t i = 0; i < atoms; ++i) target[i] = T(0);
  for (std::int64_t j = 0; j < atoms; ++j) {
    const T position = positions[j];
    std::int64_t lower = position > T(0) ? static_cast<std::int64_t>(position) : 0;
    if (lower > last_lower) lower = last_lower;
    const T mass = masses[j] * scale, upper_share = position - static_cast<T>(lower);
    target[lower] += mass * (T(1) - upper_share);
    if (atoms > 1) target[lower + 1] += mass * upper_share;
  }
}

template <class T>
void target(const CategoricalTargetParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const std::int64_t atoms = p.atoms;
  const Support<T> support = Support<T>::of(p.v_min, p.v_max, atoms);
  std::vector<T> scratch(static_cast<std::size_t>(4 * atoms));
  T *z = scratch.data(), *exps1 = z + atoms, *exps2 = exps1 + atoms, *positions = exps2 + atoms;
  for (std::int64_t j = 0; j < atoms; ++j) z[j] = support.atom(j);
  for (std::int64_t row = begin; row < end; ++row) {
    ExpRow<T> chosen = exp_row<V>(&element(p.next_logits1, row, 0), atoms, exps1);
    const T* exps = exps1;
    if (p.next_logits2.data != nullptr) {
      const ExpRow<T> second = exp_row<V>(&element(p.next_logits2, row, 0), atoms, exps2);
      if (!takes_first(dot<V>(exps1, z, atoms) / chosen.sum, dot<V>(exps2, z, atoms) / second.sum)) {
        chosen = second;
        exps = exps2;
      }
    }
    const BellmanRow<T> sample = bellman_row<T>(p.sample, row);
    const BellmanRow<V> lanes{broadcast<V>(sample.reward), broadcast<V>(sample.discount), broadcast<V>(sample.entropy)};
    V nan_check{};
    for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
      const V position =
          atom_position(bellman_value(V(vector.load_or(z + j, support.v_min)), lanes), broadcast<V>(support.v_min),
                        broadcast<V>(support.v_max), broadcast<V>(support.inverse_spacing), broadcast<V>(support.last));
      vector.store(positions + j, position);
      nan_check += position;
    });
    T* out = p.target + row * atoms;
    project(exps, positions, T(1) / chosen.sum, atoms, out);
    const T check = chosen.sum + sum_of_lanes(nan_check);
    if (check != check) {  // one NaN makes all of the row NaN
      for (std::int64_t i = 0; i < atoms; ++i) out[i] = check;
    }
  }
}

template <class T>
void cross_entropy(const CrossEntropyParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const std::int64_t atoms = p.atoms;
  std::vector<T> scratch(static_cast<std::size_t>(p.slope == nullptr ? atoms : 0));
  for (std::int64_t row = begin; row < end; ++row) {
    const T *logits = &element(p.logits, row, 0), *target = &element(p.target, row, 0);
    T* slope = p.slope == nullptr ? scratch.data() : p.slope + row * atoms;
    const ExpRow<T> exps = exp_row<V>(logits, atoms, slope);
    V target_lanes{}, product_lanes{};
    for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
      const V t = vector.load(target + j);
      target_lanes += t;
      product_lanes += t * (vector.load_or(logits + j, exps.largest) - broadcast<V>(exps.largest));
    });
    const T target_sum = sum_of_lanes(target_lanes);
    p.loss[row] = target_sum * natural_log(exps.sum) - sum_of_lanes(product_lanes);
    if (p.slope == nullptr) continue;
    const V inverse_sum = broadcast<V>(T(1) / exps.sum);
    for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
      vector.store(slope + j, cross_entropy_slope(V(vector.load(slope + j) * inverse_sum), vector.load(target + j),
                                                  broadcast<V>(target_sum)));
    });
  }
}

}  // namespace

#define SACFAST_DEFINE(T)                                                                                     \
  void categorical_target(const CategoricalTargetParams<T>& params, std::int64_t begin, std::int64_t end) {   \
    target(params, begin, end);                                                                               \
  }                                                                                                           \
  void categorical_cross_entropy(const CrossEntropyParams<T>& params, std::int64_t begin, std::int64_t end) { \
    cross_entropy(params, begin, end);                                                                        \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
