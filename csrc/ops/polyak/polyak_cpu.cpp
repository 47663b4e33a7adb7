// CPU twin, compiled once for each instruction set.
#include "polyak.h"

#include "../../core/polyak.h"
#include "../../core/simd.h"

namespace sacfast::SACFAST_ISA {
namespace {

template <class T>
void update(const PolyakParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const T tau = static_cast<T>(p.tau);
  for (std::int64_t s = 0; s < p.count; ++s) {
    const PolyakSpan<T>& span = p.spans[s];
    const std::int64_t span_end = s + 1 < p.count ? p.spans[s + 1].begin : p.total;
    const std::int64_t from = begin > span.begin ? begin : span.begin;
    const std::int64_t to = end < span_end ? end : span_end;
    if (from >= to) continue;
    T* target = span.target + (from - span.begin);
    const T* online = span.online + (from - span.begin);
    for_each_vector<V>(to - from, [&](std::int64_t i, auto vector) {
      vector.store(target + i, polyak_element(vector.load(target + i), vector.load(online + i), tau));
    });
  }
}

}  // namespace

#define SACFAST_DEFINE(T)                                                                   \
  void polyak_update(const PolyakParams<T>& params, std::int64_t begin, std::int64_t end) { \
    update(params, begin, end);                                                             \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
