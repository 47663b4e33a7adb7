// CPU twin, compiled once for each instruction set.
#include "twin_q.h"

#include "../../core/bellman.h"
#include "../../core/simd.h"
#include "../../core/tile.h"

namespace sacfast::SACFAST_ISA {
namespace {

template <class T>
struct Scratch {
  T reward[kTileElements], terminated[kTileElements], q1[kTileElements], q2[kTileElements], log_prob[kTileElements];
  T alpha[kTileElements], gamma[kTileElements], grad[kTileElements];
};

// One tile of every input as dense arrays.
template <class T>
struct Tile {
  const T *reward, *terminated, *q1, *q2, *log_prob, *alpha, *gamma;
};

// alpha and gamma are one number for all samples, or a column.
template <class T>
bool is_one_number(const Strided<T>& view) {
  return view.data == nullptr || view.row_stride == 0;
}

// A coefficient that is one number fills its scratch array once, ahead of all tiles.
template <class T>
void fill_if_one_number(const Strided<T>& view, double value, T* scratch) {
  if (!is_one_number(view)) return;
  const T number = view.data != nullptr ? *view.data : static_cast<T>(value);
  for (std::int64_t i = 0; i < kTileElements; ++i) scratch[i] = number;
}

template <class T>
void fill_coefficients(const TwinQParams<T>& p, Scratch<T>& scratch) {
  fill_if_one_number(p.sample.alpha, p.sample.alpha_value, scratch.alpha);
  fill_if_one_number(p.sample.gamma, p.sample.gamma_value, scratch.gamma);
}

template <class Scalar, class T>
const Scalar* column_tile(const Strided<T>& view, std::int64_t first, std::int64_t count, Scalar* scratch) {
  return dense_tile(view, first, count, 0, 1, scratch);
}

template <class T>
Tile<T> load_tile(const TwinQParams<T>& p, std::int64_t first, std::int64_t count, Scratch<T>& scratch) {
  return {p.sample.reward.data != nullptr ? column_tile(p.sample.reward, first, count, scratch.reward) : nullptr,
          p.sample.terminated_mask.data != nullptr
              ? column_tile(p.sample.terminated_mask, first, count, scratch.terminated)
              : column_tile(p.sample.terminated, first, count, scratch.terminated),
          column_tile(p.next_q1, first, count, scratch.q1),
          column_tile(p.next_q2, first, count, scratch.q2),
          column_tile(p.sample.next_log_prob, first, count, scratch.log_prob),
          is_one_number(p.sample.alpha) ? scratch.alpha : column_tile(p.sample.alpha, first, count, scratch.alpha),
          is_one_number(p.sample.gamma) ? scratch.gamma : column_tile(p.sample.gamma, first, count, scratch.gamma)};
}

template <class T>
void target(const TwinQParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  Scratch<T> scratch;
  fill_coefficients(p, scratch);
  for_each_tile(begin, end, 1, [&](std::int64_t first, std::int64_t count, std::int64_t, std::int64_t) {
    const Tile<T> in = load_tile(p, first, count, scratch);
    for_each_vector<V>(count, [&](std::int64_t i, auto vector) {
      vector.store(p.target + first + i,
                   soft_bellman_target(vector.load(in.reward + i), vector.load(in.terminated + i),
                                       vector.load(in.q1 + i), vector.load(in.q2 + i), vector.load(in.log_prob + i),
                                       vector.load(in.alpha + i), vector.load(in.gamma + i)));
    });
  });
}

template <class T>
void target_backward(const TwinQBackwardParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  Scratch<T> scratch;
  fill_coefficients(p.forward, scratch);
  for_each_tile(begin, end, 1, [&](std::int64_t first, std::int64_t count, std::int64_t, std::int64_t) {
    const Tile<T> in = load_tile(p.forward, first, count, scratch);
    const T* grad_target = column_tile(p.grad_target, first, count, scratch.grad);
    for_each_vector<V>(count, [&](std::int64_t i, auto vector) {
      const BellmanGrad<V> grad = soft_bellman_target_backward(
          vector.load(grad_target + i), vector.load(in.terminated + i), vector.load(in.q1 + i), vector.load(in.q2 + i),
          vector.load(in.log_prob + i), vector.load(in.alpha + i), vector.load(in.gamma + i));
      vector.store(p.grad_next_q1 + first + i, grad.q1);
      vector.store(p.grad_next_q2 + first + i, grad.q2);
      vector.store(p.grad_next_log_prob + first + i, grad.log_prob);
      if (p.grad_alpha != nullptr) vector.store(p.grad_alpha + first + i, grad.alpha);
    });
  });
}

}  // namespace

#define SACFAST_DEFINE(T)                                                                                   \
  void twin_q_target(const TwinQParams<T>& params, std::int64_t begin, std::int64_t end) {                  \
    target(params, begin, end);                                                                             \
  }                                                                                                         \
  void twin_q_target_backward(const TwinQBackwardParams<T>& params, std::int64_t begin, std::int64_t end) { \
    target_backward(params, begin, end);                                                                    \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
