// CPU twin, compiled once for each instruction set.
#include "quantile.h"

#include <algorithm>
#include <vector>

#include "../../core/quantile.h"
#include "../../core/simd.h"
#include "../../core/sorting_network.h"

namespace sacfast::SACFAST_ISA {
namespace {

template <class T>
void huber_loss(const QuantileHuberParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const V kappa = constant<V>(p.kappa), inverse_kappa = constant<V>(1.0 / p.kappa);
  const T scale = T(1) / static_cast<T>(p.targets);
  for (std::int64_t row = begin; row < end; ++row) {
    const T* target = &element(p.target, row / p.critics, 0);
    T loss = T(0);
    for (std::int64_t i = 0; i < p.quantiles; ++i) {
      const T quantile = element(p.predicted, row, i);
      const V fraction = broadcast<V>(quantile_fraction<T>(i, p.quantiles));
      QuantileHuber<V> sum{};
      for_each_vector<V>(p.targets, [&](std::int64_t j, auto vector) {
        const QuantileHuber<V> pair =
            quantile_huber(broadcast<V>(quantile), vector.load(target + j), fraction, kappa, inverse_kappa);
        sum.loss += vector.kept(pair.loss);
        sum.slope += vector.kept(pair.slope);
      });
      loss += sum_of_lanes(sum.loss) * scale;
      if (p.slope != nullptr) {
        p.slope[row * p.quantiles + i] = sum_of_lanes(sum.slope) * scale / static_cast<T>(p.quantiles);
      }
    }
    p.loss[row] = loss / static_cast<T>(p.quantiles);
  }
}

// Sorts `count` vectors of memory, each lane for itself.
template <class V, class T>
void sort_lanes(T* values, std::int64_t count) {
  constexpr std::int64_t lanes = LanesOf<V>::count;
  for_each_sorting_pass(count, [&](const SortingPass& pass) {
    const std::int64_t run = pass.mask;  // as many comparisons begin side by side, and as many elements not at all
    for (std::int64_t first = pass.residue; first + pass.distance < count; first += 2 * run) {
      const std::int64_t end = std::min(first + run, count - pass.distance);
      for (std::int64_t i = first; i < end; ++i) {
        T *low = values + i * lanes, *high = low + pass.distance * lanes;
        const V a = load<V>(low), b = load<V>(high);
        store<V>(low, smaller(a, b));
        store<V>(high, larger(a, b));
      }
    }
  });
}

// A row in each lane: sorted, moved by the Bellman equation. One NaN makes all of its row NaN: sorted last, it would be
// dropped, and a broken critic with it.
template <class V, class T>
void target_of_lanes(const TruncatedTargetParams<T>& p, const BellmanRow<V>& samples, T* values) {
  constexpr std::int64_t lanes = LanesOf<V>::count;
  V nan_check{};
  for (std::int64_t i = 0; i < p.pooled; ++i) {
    const V value = load<V>(values + i * lanes);
    nan_check = value == value ? nan_check : value;
  }
  sort_lanes<V>(values, p.pooled);
  for (std::int64_t i = 0; i < p.kept; ++i) {
    store<V>(values + i * lanes, V(bellman_value(load<V>(values + i * lanes), samples) + nan_check));
  }
}

template <class T>
void truncated_target(const TruncatedTargetParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  constexpr std::int64_t lanes = LanesOf<V>::count;
  std::vector<T> scratch(static_cast<std::size_t>(p.pooled * lanes));  // [pooled, lanes]: a row in each lane
  for (std::int64_t first = begin; first < end; first += lanes) {
    const std::int64_t rows = end - first < lanes ? end - first : lanes;
    T reward[lanes] = {}, discount[lanes] = {}, entropy[lanes] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      const BellmanRow<T> sample = bellman_row<T>(p.sample, first + r);
      reward[r] = sample.reward;
      discount[r] = sample.discount;
      entropy[r] = sample.entropy;
      const T* row = &element(p.next_quantiles, first + r, 0);
      for (std::int64_t i = 0; i < p.pooled; ++i) {
        scratch[static_cast<std::size_t>(i * lanes + r)] = row[i * p.next_quantiles.col_stride];
      }
    }
    target_of_lanes<V>(p, {load<V>(reward), load<V>(discount), load<V>(entropy)}, scratch.data());
    for (std::int64_t r = 0; r < rows; ++r) {
      T* out = p.target + (first + r) * p.kept;
      for (std::int64_t i = 0; i < p.kept; ++i) out[i] = scratch[static_cast<std::size_t>(i * lanes + r)];
    }
  }
}

}  // namespace

#define SACFAST_DEFINE(T)                                                                                        \
  void quantile_huber_loss(const QuantileHuberParams<T>& params, std::int64_t begin, std::int64_t end) {         \
    huber_loss(params, begin, end);                                                                              \
  }                                                                                                              \
  void truncated_quantile_target(const TruncatedTargetParams<T>& params, std::int64_t begin, std::int64_t end) { \
    truncated_target(params, begin, end);                                                                        \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
