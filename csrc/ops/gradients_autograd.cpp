// Autograd of losses whose kernel makes the slope too, of maps of each element, of targets without gradients and of
// steps in place: what sacfast/ops/_gradients.py has in Python, 5 to 15 us a call slower. Each kernel serves several
// ops: it reads the arguments' names from the op's schema.
#include <ATen/core/stack.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "autograd.h"

namespace sacfast {
namespace {

using c10::DispatchKeySet;
using c10::OperatorHandle;
using torch::jit::Stack;

OperatorHandle find(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
}

// Calls the op past autograd, on the stack.
void run_below(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  const at::AutoDispatchBelowAutograd below;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

void check_no_tangent(const std::string& name, const Tensor& tensor) {
  TORCH_CHECK_VALUE(!has_tangent(tensor), name,
                    ": expected a tensor without a tangent, because no gradient flows through it (detach it), got one "
                    "with a tangent");
}

// Calls body(name, tensor, is_written) for every tensor among the arguments, those of lists too.
template <class Body>
void for_each_tensor(const OperatorHandle& op, const Stack& stack, Body body) {
  const auto& arguments = op.schema().arguments();
  const auto values = torch::jit::last(stack, arguments.size());
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const c10::AliasInfo* alias = arguments[i].alias_info();
    const bool is_written = alias != nullptr && alias->isWrite();
    if (values[i].isTensor()) {
      body(arguments[i].name(), values[i].toTensor(), is_written);
    } else if (values[i].isTensorList()) {
      const auto list = values[i].toTensorVector();
      for (std::size_t k = 0; k < list.size(); ++k) {
        body(arguments[i].name() + "[" + std::to_string(k) + "]", list[k], is_written);
      }
    }
  }
}

void refuse_gradients(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  for_each_tensor(op, *stack, [](const std::string& name, const Tensor& tensor, bool) {
    if (at::GradMode::is_enabled()) check_no_grad(name.c_str(), tensor);
    check_no_tangent(name, tensor);
  });
  run_below(op, keys, stack);
}

// As an optimiser's step: leaves may require grad.
void record_nothing(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  for_each_tensor(op, *stack, [](const std::string& name, const Tensor& tensor, bool is_written) {
    const bool is_result = is_written && at::GradMode::is_enabled() && tensor.requires_grad() && !tensor.is_leaf();
    TORCH_CHECK_VALUE(!is_result, name,
                      ": expected a leaf tensor, because no gradient flows through the step, got the result of an "
                      "operation that autograd records");
    check_no_tangent(name, tensor);
  });
  run_below(op, keys, stack);
}

void count_versions(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  std::vector<Tensor> written;
  for_each_tensor(op, *stack, [&](const std::string&, const Tensor& tensor, bool is_written) {
    if (is_written) written.push_back(tensor);
  });
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const Tensor& tensor : written) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

// The op's arguments, kept for the backward pass: tensors with their versions, and numbers.
struct SavedArguments {
  std::vector<SavedVariable> tensors;
  std::vector<c10::IValue> numbers;

  void save(c10::ArrayRef<c10::IValue> arguments) {
    for (const c10::IValue& argument : arguments) {
      if (argument.isTensor()) {
        tensors.emplace_back(argument.toTensor(), /*is_output=*/false);
      } else {
        numbers.push_back(argument);
      }
    }
  }

  // Tensors first, as the ops have them. Each is asked for, so that an edit is noticed.
  Stack unpack(const NodePointer& node) const {
    Stack stack;
    for (const SavedVariable& tensor : tensors) stack.emplace_back(tensor.unpack(node));
    stack.insert(stack.end(), numbers.begin(), numbers.end());
    return stack;
  }

  void release() {
    for (SavedVariable& tensor : tensors) tensor.reset_data();
  }
};

Tensor call(const std::string& name, Stack&& stack) {
  find(name).callBoxed(stack);
  return stack.front().toTensor();
}

Stack detached(c10::ArrayRef<c10::IValue> arguments) {
  Stack stack;
  for (const c10::IValue& argument : arguments) {
    stack.push_back(argument.isTensor() ? c10::IValue(argument.toTensor().detach()) : argument);
  }
  return stack;
}

struct LossBackward : BackwardNode {
  SavedArguments arguments;  // input, target, numbers
  SavedVariable slope;       // d loss / d input
  std::string op;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(1);
    Stack stack = arguments.unpack(getptr());
    Tensor factor = slope.unpack(getptr());
    // create_graph: the slope is differentiated in turn.
    if (at::GradMode::is_enabled()) factor = call("sacfast::_" + op + "_slope_plain", std::move(stack));
    return {grads[0].unsqueeze(-1) * factor};
  }

  void release_variables() override {
    arguments.release();
    slope.reset_data();
  }

  std::string name() const override { return op + "_backward"; }
};

// (input, target, *numbers, needs_slope) -> (loss, slope)
void differentiate_loss(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  const std::size_t count = op.schema().arguments().size();
  const auto arguments = torch::jit::last(*stack, count);
  const Tensor input = arguments[0].toTensor(), target = arguments[1].toTensor();
  const std::string name = op.operator_name().name.substr(std::strlen("sacfast::"));
  if (at::GradMode::is_enabled()) check_no_grad("target", target);
  if (any_has_tangent(input, target)) {
    {
      const at::NoGradGuard no_grad;
      Stack checked = detached(arguments);
      op.callBoxed(checked);  // for its checks
    }
    const Tensor loss = call("sacfast::_" + name + "_plain", Stack(arguments.begin(), arguments.end() - 1));
    torch::jit::drop(*stack, count);
    torch::jit::push(*stack, loss, at::empty({0}, input.options()));
    return;
  }
  if (!any_requires_grad(input)) return run_below(op, keys, stack);
  auto node = backward_node<LossBackward>({input});
  node->op = name;
  node->arguments.save(arguments.slice(0, count - 1));
  stack->back() = true;  // needs_slope
  run_below(op, keys, stack);
  node->slope = SavedVariable(torch::jit::peek(*stack, 1, 2).toTensor(), false);
  torch::autograd::set_history(torch::jit::peek(*stack, 0, 2).toTensor(), node);
}

struct ElementwiseBackward : BackwardNode {
  SavedArguments arguments;
  std::string op;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(1);
    Stack stack = arguments.unpack(getptr());
    stack.insert(stack.begin(), grads[0]);
    const bool is_plain = at::GradMode::is_enabled() || has_tangent(grads[0]);
    return {call(is_plain ? "sacfast::_" + op + "_backward_plain" : "sacfast::" + op + "_backward", std::move(stack))};
  }

  void release_variables() override { arguments.release(); }

  std::string name() const override { return op + "_backward"; }
};

// (input, *others, *numbers) -> result; the other tensors take no gradient.
void differentiate_elementwise(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  const std::size_t count = op.schema().arguments().size();
  const auto arguments = torch::jit::last(*stack, count);
  const Tensor input = arguments[0].toTensor();
  const std::string name = op.operator_name().name.substr(std::strlen("sacfast::"));
  bool is_dual = false;
  for_each_tensor(op, *stack, [&](const std::string& argument, const Tensor& tensor, bool) {
    if (at::GradMode::is_enabled() && !tensor.is_same(input)) check_no_grad(argument.c_str(), tensor);
    is_dual = is_dual || has_tangent(tensor);
  });
  if (is_dual) {
    {
      const at::NoGradGuard no_grad;
      Stack checked = detached(arguments);
      op.callBoxed(checked);  // for its checks
    }
    const Tensor result = call("sacfast::_" + name + "_plain", Stack(arguments.begin(), arguments.end()));
    torch::jit::drop(*stack, count);
    return torch::jit::push(*stack, result);
  }
  if (!any_requires_grad(input)) return run_below(op, keys, stack);
  auto node = backward_node<ElementwiseBackward>({input});
  node->op = name;
  node->arguments.save(arguments);
  run_below(op, keys, stack);
  torch::autograd::set_history(stack->back().toTensor(), node);
}

// The ops, by what autograd does with them.
constexpr std::array kTargets = {"categorical_target", "normalize_out", "truncated_quantile_target",
                                 "twin_q_target_out"};
constexpr std::array kSteps = {"adam_polyak_", "update_running_moments_"};
constexpr std::array kLosses = {"categorical_cross_entropy", "quantile_huber_loss"};
constexpr std::array kElementwise = {"normalize"};
constexpr std::array kInPlace = {"adam_polyak_", "normalize_out", "update_running_moments_", "twin_q_target_out"};

template <auto* kernel, class Names>
void serve(torch::Library& library, const Names& names) {
  for (const char* op : names) library.impl(op, torch::CppFunction::makeFromBoxedFunction<kernel>());
}

TORCH_LIBRARY_IMPL(sacfast, Autograd, m) {
  serve<&refuse_gradients>(m, kTargets);
  serve<&record_nothing>(m, kSteps);
  serve<&differentiate_loss>(m, kLosses);
  serve<&differentiate_elementwise>(m, kElementwise);
}
TORCH_LIBRARY_IMPL(sacfast, ADInplaceOrView, m) { serve<&count_versions>(m, kInPlace); }

template <class Names>
bool has(const Names& names, std::string_view op) {
  return std::find(names.begin(), names.end(), op) != names.end();
}

}  // namespace
}  // namespace sacfast

// Whether this library has autograd for an op; sacfast/ops/_gradients.py has it for the others.
extern "C" __attribute__((visibility("default"))) int sacfast_has_autograd(const char* op) {
  using namespace sacfast;
  return has(kTargets, op) || has(kSteps, op) || has(kLosses, op) || has(kElementwise, op);
}
