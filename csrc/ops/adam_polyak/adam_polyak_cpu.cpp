// CPU twin, compiled once for each instruction set.
#include "adam_polyak.h"

#include "../../core/simd.h"

namespace sacfast::SACFAST_ISA {
namespace {

template <class T>
void update(const AdamPolyakParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const AdamPolyakFactors<T> factors = p.template factors<T>();
  for (std::int64_t s = 0; s < p.count; ++s) {
    const AdamPolyakSpan<T>& span = p.spans[s];
    const std::int64_t span_end = s + 1 < p.count ? p.spans[s + 1].begin : p.total;
    const std::int64_t from = begin > span.begin ? begin : span.begin;
    const std::int64_t to = end < span_end ? end : span_end;
    if (from >= to) continue;
    const std::int64_t at = from - span.begin;
    for_each_vector<V>(to - from, [&](std::int64_t i, auto vector) {
      const std::int64_t k = at + i;
      const AdamState<V> next = adam_w_element(
          vector.load(span.grad + k),
          AdamState<V>{vector.load(span.param + k), vector.load(span.exp_avg + k), vector.load(span.exp_avg_sq + k)},
          factors);
      vector.store(span.param + k, next.parameter);
      vector.store(span.exp_avg + k, next.exp_avg);
      vector.store(span.exp_avg_sq + k, next.exp_avg_sq);
      if (span.target != nullptr) {
        vector.store(span.target + k, polyak_element(vector.load(span.target + k), next.parameter, factors.tau));
      }
    });
  }
}

}  // namespace

#define SACFAST_DEFINE(T)                                                                     \
  void adam_polyak(const AdamPolyakParams<T>& params, std::int64_t begin, std::int64_t end) { \
    update(params, begin, end);                                                               \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
