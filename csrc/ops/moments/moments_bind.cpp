// Torch checks and registration on CPU and CUDA. Schemas and autograd: sacfast/ops/moments.py.
#include "moments.h"

#include <cmath>

#include "../tensor_lists.h"

namespace sacfast {
namespace {

// A mean or a variance: of the dtype of the data (float32 for halves) or float64, of the shape of the last dimensions.
void check_moment(const Argument& moment, const Argument& data) {
  SACFAST_CHECK(moment.tensor.defined(), moment.name, ": expected a tensor, got None");
  const Dtype dtype = moment.tensor.dtype(), own = data.tensor.dtype() == kDouble ? kDouble : kFloat;
  SACFAST_CHECK(dtype == own || dtype == kDouble, moment.name, ": expected dtype ", own,
                own == kDouble ? "" : " or Double", " for data like ", data.name, ", got ", dtype);
  SACFAST_CHECK(moment.tensor.device() == data.tensor.device(), moment.name, ": expected device ", data.tensor.device(),
                " like ", data.name, ", got ", moment.tensor.device());
}

void check_moments(const Argument& data, const Argument& mean, const Argument& variance) {
  check_dtype(data);
  check_moment(mean, data);
  check_moment(variance, data);
  SACFAST_CHECK(variance.tensor.dtype() == mean.tensor.dtype(), variance.name, ": expected dtype ", mean.tensor.dtype(),
                " like ", mean.name, ", got ", variance.tensor.dtype());
  const IntView sizes = mean.tensor.sizes(), all = data.tensor.sizes();
  SACFAST_CHECK(mean.tensor.numel() >= 1, mean.name, ": expected at least one element, got shape ", sizes);
  SACFAST_CHECK(variance.tensor.sizes() == sizes, variance.name, ": expected shape ", sizes, " like ", mean.name,
                ", got ", variance.tensor.sizes());
  const bool fits = all.size() >= sizes.size() && IntView(all.end() - sizes.size(), sizes.size()) == sizes;
  SACFAST_CHECK(fits, data.name, ": expected a shape that ends with ", sizes, " like ", mean.name, ", got ", all);
}

// A tensor [..., *S] as a matrix, its last `trailing` dimensions as columns; of strides that cannot be merged, a copy.
MatrixView as_columns(const Tensor& tensor, std::size_t trailing) {
  const std::size_t leading = tensor.dim() - trailing;
  const IntView sizes = tensor.sizes(), strides = tensor.strides();
  const IntView of_columns(sizes.data + leading, trailing);
  MatrixView view;
  if (merge_dimensions(sizes, strides, leading, view.row_stride) &&
      merge_dimensions(of_columns, IntView(strides.data + leading, trailing), trailing, view.col_stride)) {
    view.data = pointer<const void>(tensor);
    return view;
  }
  view.copied = empty(sizes, tensor);
  copy(*view.copied, tensor);
  view.data = pointer<const void>(*view.copied);
  view.row_stride = 1;
  for (const std::int64_t size : of_columns) view.row_stride *= size;
  view.col_stride = 1;
  return view;
}

// A mean or a variance as the kernels take it; one whose strides cannot be merged is a copy.
class MomentView {
 public:
  MomentView(const Tensor& tensor, bool is_written) : tensor_(&tensor) {
    const Tensor* place = &tensor;
    if (!merge_dimensions(tensor.sizes(), tensor.strides(), tensor.dim(), columns_.stride)) {
      copied_ = empty(tensor.sizes(), tensor);
      copy(*copied_, tensor);
      place = &*copied_;
      columns_.stride = 1;
    }
    const auto address = [&](auto zero) {
      using M = decltype(zero);
      return is_written ? pointer<M>(*place) : const_cast<M*>(pointer<const M>(*place));
    };
    if (tensor.dtype() == kDouble) {
      columns_.wide = address(double{});
    } else {
      columns_.single = address(float{});
    }
  }

  const MomentColumns& columns() const { return columns_; }

  // After a kernel that wrote to it.
  void write_back() const {
    if (copied_.has_value()) copy(*tensor_, *copied_);
  }

 private:
  const Tensor* tensor_;
  OptionalTensor copied_;
  MomentColumns columns_;
};

void check_written(const Argument& written, std::initializer_list<Argument> others) {
  SACFAST_CHECK(!is_expanded(written.tensor), written.name,
                ": expected memory of its own for each element, got an expanded tensor (clone it)");
  for (const Argument& other : others) {
    SACFAST_CHECK(other.tensor.numel() == 0 || !share_memory(written.tensor, other.tensor), written.name,
                  ": expected memory that no other argument shares, got an overlap with ", other.name);
  }
}

void check_count(const Argument& count, const Argument& batch) {
  SACFAST_CHECK(count.tensor.defined(), count.name, ": expected a tensor, got None");
  const Dtype dtype = count.tensor.dtype();
  SACFAST_CHECK(dtype == kDouble || dtype == kLong, count.name,
                ": expected dtype float64 or int64 (float32 cannot count beyond 2^24), got ", dtype);
  SACFAST_CHECK(count.tensor.device() == batch.tensor.device(), count.name, ": expected device ", batch.tensor.device(),
                " like ", batch.name, ", got ", count.tensor.device());
  SACFAST_CHECK(count.tensor.numel() == 1, count.name, ": expected one element, got shape ", count.tensor.sizes());
  if (!count.tensor.is_cpu()) return;  // a value on a GPU is not waited for: without meaning, it makes NaN
  const double value = dtype == kDouble ? *pointer<const double>(count.tensor)
                                        : static_cast<double>(*pointer<const std::int64_t>(count.tensor));
  SACFAST_CHECK(value >= 0.0 && value <= 9007199254740992.0, count.name, ": expected a number in [0, 2^53], got ",
                value);
}

// Parts of the rows that are summed by themselves: enough for a GPU's multiprocessors, and for CPU threads where a part
// is worth one.
std::int64_t parts_of(const Tensor& batch, std::int64_t rows, std::int64_t columns) {
  const std::int64_t elements = batch.is_cpu() ? 4 * kGrainElements : kGrainElements / 2;
  const std::int64_t most = batch.is_cpu() ? std::min<std::int64_t>(64, (rows + 255) / 256) : kMostParts;
  return std::clamp<std::int64_t>(rows * columns / elements, 1, std::min(most, rows));
}

void update_running_moments_(const Tensor& mean, const Tensor& variance, const Tensor& count, const Tensor& batch) {
  const Argument mean_argument{"mean", mean}, variance_argument{"variance", variance}, count_argument{"count", count},
      batch_argument{"batch", batch};
  check_moments(batch_argument, mean_argument, variance_argument);
  check_count(count_argument, batch_argument);
  check_written(mean_argument, {variance_argument, count_argument, batch_argument});
  check_written(variance_argument, {count_argument, batch_argument});
  check_written(count_argument, {batch_argument});
  if (batch.numel() == 0) return;
  const DeviceOf guard(batch);
  const std::int64_t columns = mean.numel(), rows = batch.numel() / columns;
  const std::int64_t parts = parts_of(batch, rows, columns), sums = 2 * parts * columns;
  const std::int64_t doubles = sums + 1;
  const Tensor work = empty(IntView(&doubles, 1), kDouble, batch.device());
  const MatrixView view = as_columns(batch, mean.dim());
  const MomentView mean_view(mean, true), variance_view(variance, true);
  with_kernel_type(batch, [&](auto zero) {
    using T = decltype(zero);
    const RunningMomentsParams<T> params{rows,
                                         columns,
                                         view.as<T>(),
                                         mean_view.columns(),
                                         variance_view.columns(),
                                         count.dtype() == kDouble ? pointer<double>(count) : nullptr,
                                         count.dtype() == kLong ? pointer<std::int64_t>(count) : nullptr,
                                         parts,
                                         pointer<double>(work),
                                         pointer<double>(work) + sums};
    const std::int64_t units = parts * ((columns + kMomentColumns - 1) / kMomentColumns);
    SACFAST_RUN(partial_moments, batch, T, params, units, rows_per_thread(batch.numel() / units / 4));
    SACFAST_RUN(merge_moments, batch, T, params, columns, rows_per_thread(4 * parts));
  });
  mean_view.write_back();
  variance_view.write_back();
}

void run_normalize(const Tensor& x, const Tensor* grad, const Tensor& mean, const Tensor& variance, double eps,
                   double clip, const Tensor& out) {
  SACFAST_CHECK(std::isfinite(eps) && eps >= 0.0, "eps: expected a finite number >= 0, got ", eps);
  SACFAST_CHECK(clip > 0.0, "clip: expected None or a number > 0, got ", clip);
  if (x.numel() == 0) return;
  const std::int64_t columns = mean.numel(), rows = x.numel() / columns;
  const MatrixView view = as_columns(x, mean.dim());
  const MatrixView grad_view = grad != nullptr ? as_columns(*grad, mean.dim()) : MatrixView{};
  const MomentView mean_view(mean, false), variance_view(variance, false);
  with_kernel_type(x, [&](auto zero) {
    using T = decltype(zero);
    const NormalizeParams<T> params{rows, columns, view.as<T>(),      mean_view.columns(), variance_view.columns(),
                                    eps,  clip,    grad_view.as<T>(), pointer<T>(out)};
    SACFAST_RUN(normalize, x, T, params, rows, rows_per_thread(columns / 2));
  });
}

Tensor normalize_forward(const Tensor& x, const Tensor& mean, const Tensor& variance, double eps, double clip) {
  check_moments({"x", x}, {"mean", mean}, {"variance", variance});
  const DeviceOf guard(x);
  Tensor out = empty(x.sizes(), x);
  run_normalize(x, nullptr, mean, variance, eps, clip, out);
  return out;
}

// Its values go to memory that the caller keeps: the pages of a large new tensor cost ten times the arithmetic.
void normalize_out(const Tensor& x, const Tensor& mean, const Tensor& variance, double eps, double clip,
                   const Tensor& out) {
  const Argument x_argument{"x", x}, out_argument{"out", out};
  check_moments(x_argument, {"mean", mean}, {"variance", variance});
  check_same_dtype_and_device(out_argument, x_argument);
  SACFAST_CHECK(out.sizes() == x.sizes(), "out: expected shape ", x.sizes(), " like x, got ", out.sizes());
  bool is_contiguous = false;
  SACFAST_TORCH(aoti_torch_is_contiguous, out.get(), &is_contiguous);
  SACFAST_CHECK(is_contiguous, "out: expected a contiguous tensor, got strides ", out.strides());
  if (out.numel() > 0) check_written(out_argument, {x_argument, {"mean", mean}, {"variance", variance}});
  const DeviceOf guard(x);
  run_normalize(x, nullptr, mean, variance, eps, clip, out);
}

Tensor normalize_backward(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& variance, double eps,
                          double clip) {
  check_moments({"x", x}, {"mean", mean}, {"variance", variance});
  check_same_dtype_and_device({"grad", grad}, {"x", x});
  SACFAST_CHECK(grad.sizes() == x.sizes(), "grad: expected shape ", x.sizes(), " like x, got ", grad.sizes());
  const DeviceOf guard(x);
  Tensor out = empty(x.sizes(), x);
  run_normalize(x, &grad, mean, variance, eps, clip, out);
  return out;
}

SACFAST_KERNELS(m) {
  m.impl("update_running_moments_", SACFAST_KERNEL(update_running_moments_));
  m.impl("normalize", SACFAST_KERNEL(normalize_forward));
  m.impl("normalize_out", SACFAST_KERNEL(normalize_out));
  m.impl("normalize_backward", SACFAST_KERNEL(normalize_backward));
}

}  // namespace
}  // namespace sacfast
