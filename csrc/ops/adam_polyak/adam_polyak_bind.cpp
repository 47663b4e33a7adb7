// Torch checks and registration on CPU and CUDA. The schema is in sacfast/ops/adam_polyak.py.
#include "adam_polyak.h"

#include <cmath>

#include "../tensor_lists.h"

namespace sacfast {
namespace {

void check_numbers(std::int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
                   double tau) {
  SACFAST_CHECK(step >= 1, "step: expected an int >= 1, got ", step);
  const auto check_size = [](const char* name, double value) {
    SACFAST_CHECK(std::isfinite(value) && value >= 0.0, name, ": expected a finite number >= 0, got ", value);
  };
  check_size("lr", lr);
  SACFAST_CHECK(beta1 >= 0.0 && beta1 < 1.0 && beta2 >= 0.0 && beta2 < 1.0,
                "betas: expected two numbers in [0, 1), got (", beta1, ", ", beta2, ")");
  check_size("eps", eps);
  check_size("weight_decay", weight_decay);
  SACFAST_CHECK(tau >= 0.0 && tau <= 1.0, "tau: expected a number in [0, 1], got ", tau);
}

// As many tensors as there are parameters, each of its parameter's shape, dtype and device.
void check_list(const NamedList& list, const NamedList& params) {
  SACFAST_CHECK(list.tensors.size() == params.tensors.size(), list.name, ": expected ", params.tensors.size(),
                " tensors like params, got ", list.tensors.size());
  for (std::size_t i = 0; i < list.tensors.size(); ++i) {
    const Tensor &tensor = list.tensors[i], &param = params.tensors[i], &first = params.tensors[0];
    // The names are made only when there is something to say: this runs for every parameter at every update.
    if (tensor.defined() && tensor.dtype() == first.dtype() && tensor.device() == first.device() &&
        tensor.sizes() == param.sizes() && !(list.is_written && is_expanded(tensor))) {
      continue;
    }
    const std::string name = element_name(list.name, i), param_name = element_name("params", i);
    check_same_dtype_and_device({name.c_str(), tensor}, {"params[0]", first});
    SACFAST_CHECK(tensor.sizes() == param.sizes(), name, ": expected shape ", param.sizes(), " like ", param_name,
                  ", got ", tensor.sizes());
    refuse(name, ": expected memory of its own for each element, got an expanded tensor (clone it)");
  }
}

void adam_polyak_(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                  const TensorList& exp_avg_sqs, const TensorList& targets, std::int64_t step, double lr, double beta1,
                  double beta2, double eps, double weight_decay, double tau) {
  check_numbers(step, lr, beta1, beta2, eps, weight_decay, tau);
  if (!params.empty()) check_dtype({"params[0]", params[0]});
  const NamedList named{"params", params, true};
  for (const NamedList& list : {named, NamedList{"grads", grads, false}, NamedList{"exp_avgs", exp_avgs, true},
                                NamedList{"exp_avg_sqs", exp_avg_sqs, true}}) {
    check_list(list, named);
  }
  if (!targets.empty()) check_list({"target_params", targets, true}, named);
  if (params.empty()) return;
  check_overlap({named,
                 {"grads", grads, false},
                 {"exp_avgs", exp_avgs, true},
                 {"exp_avg_sqs", exp_avg_sqs, true},
                 {"target_params", targets, true}});
  const DeviceOf guard(params[0]);
  SameLayout layouts(5 * params.size());
  with_kernel_type(params[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<AdamPolyakSpan<T>> spans;
    spans.reserve(params.size());
    std::int64_t total = 0;
    for (std::size_t i = 0; i < params.size(); ++i) {
      const Tensor& param = layouts.dense(params[i]);
      const auto written = [&](const Tensor& tensor) { return pointer<T>(layouts.like(param, tensor, true)); };
      spans.push_back({pointer<T>(param), pointer<const T>(layouts.like(param, grads[i], false)), written(exp_avgs[i]),
                       written(exp_avg_sqs[i]), targets.empty() ? nullptr : written(targets[i]), total});
      total += param.numel();
    }
    const AdamPolyakParams<T> p{
        spans.data(), static_cast<std::int64_t>(spans.size()), total, step, lr, beta1, beta2, eps, weight_decay, tau};
    if (total > 0) SACFAST_RUN(adam_polyak, params[0], T, p, total, kGrainElements);
  });
  layouts.write_back();
}

SACFAST_KERNELS(m) { m.impl("adam_polyak_", SACFAST_KERNEL(adam_polyak_)); }

}  // namespace
}  // namespace sacfast
