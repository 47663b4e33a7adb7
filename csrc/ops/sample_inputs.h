// What the bindings of all Bellman targets share: the checks of what a sample brings, and its view.
#pragma once

#include "../core/bellman_row.h"
#include "binding.h"

namespace sacfast {

template <class T>
Strided<T> column(const Tensor& tensor) {
  return {pointer<const T>(tensor), tensor.dim() > 0 && tensor.numel() > 1 ? tensor.stride(0) : 0, 1};
}

template <class T>
Strided<T> optional_column(const OptionalTensor& tensor) {
  return given(tensor) ? column<T>(*tensor) : Strided<T>{};
}

// Of the dtype, device and shape of another argument.
inline void check_like(const Argument& argument, const Argument& like) {
  check_same_dtype_and_device(argument, like);
  SACFAST_CHECK(argument.tensor.sizes() == like.tensor.sizes(), argument.name, ": expected shape ", like.tensor.sizes(),
                " like ", like.name, ", got ", argument.tensor.sizes());
}

// alpha or gamma: one number for all samples, or one a sample.
inline void check_coefficient(const char* name, const OptionalTensor& tensor, const Argument& reward) {
  if (!given(tensor)) return;
  check_same_dtype_and_device({name, *tensor}, reward);
  SACFAST_CHECK(tensor->numel() == 1 || tensor->sizes() == reward.tensor.sizes(), name,
                ": expected one element, or shape ", reward.tensor.sizes(), " like ", reward.name, ", got ",
                tensor->sizes());
}

// [B] or [B, 1].
inline void check_reward(const Argument& reward) {
  check_dtype(reward);
  const IntView sizes = reward.tensor.sizes();
  SACFAST_CHECK(sizes.size() == 1 || (sizes.size() == 2 && sizes[1] == 1), reward.name,
                ": expected shape [B] or [B, 1], got ", sizes);
}

// What a sample brings besides its reward. All have the reward's shape: mixing [B] and [B, 1] would broadcast to [B, B]
// in plain torch.
struct SampleInputs {
  const Tensor &terminated, &next_log_prob;
  const OptionalTensor& alpha;
  double alpha_value;
  const OptionalTensor& gamma;
  double gamma_value;

  // `reward` is checked before.
  void check(const Argument& reward) const {
    check_like({"next_log_prob", next_log_prob}, reward);
    SACFAST_CHECK(terminated.defined(), "terminated: expected a tensor, got None");
    if (terminated.dtype() == kBool) {
      SACFAST_CHECK(terminated.device() == reward.tensor.device() && terminated.sizes() == reward.tensor.sizes(),
                    "terminated: expected shape ", reward.tensor.sizes(), " on ", reward.tensor.device(), " like ",
                    reward.name, ", got ", terminated.sizes(), " on ", terminated.device());
    } else {
      SACFAST_CHECK(terminated.dtype() == reward.tensor.dtype(), "terminated: expected dtype bool or ",
                    reward.tensor.dtype(), " like ", reward.name, ", got ", terminated.dtype());
      check_like({"terminated", terminated}, reward);
    }
    check_coefficient("alpha", alpha, reward);
    check_coefficient("gamma", gamma, reward);
  }

  // Without the reward.
  template <class T>
  BellmanInputs<T> view() const {
    const bool is_mask = terminated.dtype() == kBool;
    return {Strided<T>{},
            is_mask ? Strided<T>{} : column<T>(terminated),
            is_mask ? column<bool>(terminated) : Strided<bool>{},
            column<T>(next_log_prob),
            optional_column<T>(alpha),
            optional_column<T>(gamma),
            alpha_value,
            gamma_value};
  }
  template <class T>
  BellmanInputs<T> view(const Tensor& reward) const {
    BellmanInputs<T> inputs = view<T>();
    inputs.reward = column<T>(reward);
    return inputs;
  }
};

// What a critic gives for the batch: a row, or several, for each sample; none of them empty.
inline void check_rows(const Argument& output, std::size_t dims, const char* shape, const Argument& reward) {
  check_same_dtype_and_device(output, reward);
  bool fits = output.tensor.dim() == dims && output.tensor.size(0) == reward.tensor.numel();
  for (std::size_t d = 1; fits && d < dims; ++d) fits = output.tensor.size(d) >= 1;
  SACFAST_CHECK(fits, output.name, ": expected shape ", shape, " with B = ", reward.tensor.numel(), " like ",
                reward.name, " and the others >= 1, got ", output.tensor.sizes());
}

}  // namespace sacfast
