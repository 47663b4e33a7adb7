// CPU twin, compiled once for each instruction set.
#include "tanh_gaussian.h"

#include "../../core/philox.h"
#include "../../core/tile.h"

namespace sacfast::SACFAST_ISA {
namespace {

// log_prob[row] (+)= sum of the row's elements + shift.
template <class T>
void add_row_sums(const T* elements, std::int64_t rows, std::int64_t cols, bool first_part, T shift, T* log_prob) {
  for (std::int64_t r = 0; r < rows; ++r) {
    T sum = first_part ? shift : log_prob[r];
    for (std::int64_t c = 0; c < cols; ++c) sum += elements[r * cols + c];
    log_prob[r] = sum;
  }
}

template <class T>
void scale_columns(T* values, std::int64_t rows, std::int64_t cols, const T* scale) {
  if (scale == nullptr) return;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) values[r * cols + c] *= scale[c];
  }
}

template <class T>
T sum_of_log_scales(const T* scale, std::int64_t cols) {
  T sum = 0;
  if (scale != nullptr) {
    for (std::int64_t c = 0; c < cols; ++c) sum += natural_log(absolute(scale[c]));
  }
  return sum;
}

// The tile's gradient in scratch, or zeros where the output was not used.
template <class T>
const T* tile_or_zero(const Strided<T>& view, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                      T* scratch) {
  if (view.data != nullptr) return dense_tile(view, row, rows, col, cols, scratch);
  for (std::int64_t i = 0; i < rows * cols; ++i) scratch[i] = 0;
  return scratch;
}

template <LogStdBounding kBounding, class T>
void rsample(const RsampleParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const V low = constant<V>(p.bounds.low), high = constant<V>(p.bounds.high);
  const T minus_log_scale = -sum_of_log_scales(p.action_scale, p.cols);
  T mean_scratch[kTileElements], log_std_scratch[kTileElements], noise_scratch[kTileElements];
  T log_prob_elements[kTileElements];
  for_each_tile(begin, end, p.cols, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
    const std::int64_t first = row * p.cols + col;
    const T* mean = dense_tile(p.mean, row, rows, col, cols, mean_scratch);
    const T* log_std = dense_tile(p.log_std, row, rows, col, cols, log_std_scratch);
    const T* noise;
    if (p.noise.data != nullptr) {
      noise = dense_tile(p.noise, row, rows, col, cols, noise_scratch);
    } else {
      T* drawn = p.noise_out != nullptr ? p.noise_out + first : noise_scratch;
      fill_normals(first, rows * cols, p.source.seed, p.source.offset, drawn);
      noise = drawn;
    }
    T* action = p.action + first;
    for_each_vector<V>(rows * cols, [&](std::int64_t i, auto vector) {
      const V bounded = bound_log_std<kBounding>(vector.load(log_std + i), low, high).value;
      const Sample<V> sample = sample_element(vector.load(mean + i), bounded, vector.load(noise + i));
      vector.store(action + i, sample.action);
      vector.store(log_prob_elements + i, sample.log_prob);
    });
    const T* scale = p.action_scale != nullptr ? p.action_scale + col : nullptr;
    scale_columns(action, rows, cols, scale);
    add_row_sums(log_prob_elements, rows, cols, col == 0, minus_log_scale, p.log_prob + row);
  });
}

template <LogStdBounding kBounding, class T>
void rsample_backward(const RsampleBackwardParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const V low = constant<V>(p.bounds.low), high = constant<V>(p.bounds.high);
  T mean_scratch[kTileElements], log_std_scratch[kTileElements], noise_scratch[kTileElements];
  T grad_action_scratch[kTileElements], grad_log_prob_scratch[kTileElements];
  for_each_tile(begin, end, p.cols, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
    const std::int64_t first = row * p.cols + col;
    const T* mean = dense_tile(p.mean, row, rows, col, cols, mean_scratch);
    const T* log_std = dense_tile(p.log_std, row, rows, col, cols, log_std_scratch);
    const T* noise = dense_tile(p.noise, row, rows, col, cols, noise_scratch);
    const T* grad_action = tile_or_zero(p.grad_action, row, rows, col, cols, grad_action_scratch);
    const T* grad_log_prob = tile_or_zero(p.grad_log_prob, row, rows, col, cols, grad_log_prob_scratch);
    if (p.action_scale != nullptr) {
      if (grad_action != grad_action_scratch) {
        for (std::int64_t i = 0; i < rows * cols; ++i) grad_action_scratch[i] = grad_action[i];
        grad_action = grad_action_scratch;
      }
      scale_columns(grad_action_scratch, rows, cols, p.action_scale + col);
    }
    for_each_vector<V>(rows * cols, [&](std::int64_t i, auto vector) {
      const LogStd<V> bounded = bound_log_std<kBounding>(vector.load(log_std + i), low, high);
      const MeanLogStdGrad<V> grad =
          sample_element_backward(vector.load(grad_action + i), vector.load(grad_log_prob + i), vector.load(mean + i),
                                  bounded.value, vector.load(noise + i));
      vector.store(p.grad_mean + first + i, grad.mean);
      vector.store(p.grad_log_std + first + i, V(grad.log_std * bounded.slope));
    });
  });
}

template <class T>
void log_prob(const LogProbParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  T z_scratch[kTileElements], mean_scratch[kTileElements], log_std_scratch[kTileElements];
  T log_prob_elements[kTileElements];
  for_each_tile(begin, end, p.cols, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
    const T* z = dense_tile(p.pre_tanh, row, rows, col, cols, z_scratch);
    const T* mean = dense_tile(p.mean, row, rows, col, cols, mean_scratch);
    const T* log_std = dense_tile(p.log_std, row, rows, col, cols, log_std_scratch);
    for_each_vector<V>(rows * cols, [&](std::int64_t i, auto vector) {
      vector.store(log_prob_elements + i,
                   log_prob_element(vector.load(z + i), vector.load(mean + i), vector.load(log_std + i)));
    });
    add_row_sums(log_prob_elements, rows, cols, col == 0, T(0), p.log_prob + row);
  });
}

template <class T>
void log_prob_backward(const LogProbBackwardParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  T z_scratch[kTileElements], mean_scratch[kTileElements], log_std_scratch[kTileElements];
  T grad_scratch[kTileElements];
  for_each_tile(begin, end, p.cols, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
    const std::int64_t first = row * p.cols + col;
    const T* z = dense_tile(p.pre_tanh, row, rows, col, cols, z_scratch);
    const T* mean = dense_tile(p.mean, row, rows, col, cols, mean_scratch);
    const T* log_std = dense_tile(p.log_std, row, rows, col, cols, log_std_scratch);
    const T* grad_log_prob = dense_tile(p.grad_log_prob, row, rows, col, cols, grad_scratch);
    for_each_vector<V>(rows * cols, [&](std::int64_t i, auto vector) {
      const LogProbGrad<V> grad = log_prob_element_backward(vector.load(grad_log_prob + i), vector.load(z + i),
                                                            vector.load(mean + i), vector.load(log_std + i));
      vector.store(p.grad_pre_tanh + first + i, grad.z);
      vector.store(p.grad_mean + first + i, grad.mean);
      vector.store(p.grad_log_std + first + i, grad.log_std);
    });
  });
}

}  // namespace

#define SACFAST_DEFINE(T)                                                                                              \
  void tanh_gaussian_rsample(const RsampleParams<T>& params, std::int64_t begin, std::int64_t end) {                   \
    with_bounding(params.bounds.kind, [&](auto kind) { rsample<decltype(kind)::value>(params, begin, end); });         \
  }                                                                                                                    \
  void tanh_gaussian_rsample_backward(const RsampleBackwardParams<T>& params, std::int64_t begin, std::int64_t end) {  \
    with_bounding(params.bounds.kind,                                                                                  \
                  [&](auto kind) { rsample_backward<decltype(kind)::value>(params, begin, end); });                    \
  }                                                                                                                    \
  void tanh_gaussian_log_prob(const LogProbParams<T>& params, std::int64_t begin, std::int64_t end) {                  \
    log_prob(params, begin, end);                                                                                      \
  }                                                                                                                    \
  void tanh_gaussian_log_prob_backward(const LogProbBackwardParams<T>& params, std::int64_t begin, std::int64_t end) { \
    log_prob_backward(params, begin, end);                                                                             \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
