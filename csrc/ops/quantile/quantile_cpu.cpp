// CPU twin, compiled once for each instruction set.
#include "quantile.h"

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
    for (std::int64_t i = 0; i + pass.distance < count; ++i) {
      if (!pass.begins_at(i)) continue;
      T *low = values + i * lanes, *high = low + pass.distance * lanes;
      const V a = load<V>(low), b = load<V>(high);
      store<V>(low, a < b ? a : b);
      store<V>(high, a < b ? b : a);
    }
  });
}

template <class T>
void truncated_target(const TruncatedTargetParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  constexpr std::int64_t lanes = LanesOf<V>::count;
  std::vector<T> scratch(static_cast<std::size_t>(p.pooled * lanes));  // [pooled, lanes]: a row in each lane
  for (std::int64_t first = begin; first < end; first += lanes) {
    const std::int64_t rows = end - first < lanes ? end - first : lanes;
    T nan_check[lanes] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < p.pooled; ++i) {
        const T value = element(p.next_quantiles, first + r, i);
        scratch[static_cast<std::size_t>(i * lanes + r)] = value;
        if (value != value) nan_check[r] = value;
      }
    }
    sort_lanes<V>(scratch.data(), p.pooled);
    for (std::int64_t r = 0; r < rows; ++r) {
      const BellmanRow<T> sample = bellman_row<T>(p.sample, first + r);
      T* out = p.target + (first + r) * p.kept;
      for (std::int64_t i = 0; i < p.kept; ++i) {
        // One NaN makes all of the row NaN: sorted last, it would be dropped, and a broken critic with it.
        out[i] = bellman_value(scratch[static_cast<std::size_t>(i * lanes + r)], sample) + nan_check[r];
      }
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
