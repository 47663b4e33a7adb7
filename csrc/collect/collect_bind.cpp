// sacfast._collect: the usual case of what Python does with every step of the environments, in one call each.
//
// Between the steps the processor's caches belong to the physics: a call of NumPy or torch then takes ten times what
// it takes in a loop of its own. Where anything is but as usual, an argument or what a step brought, a function here
// answers None, False or -1, and has changed nothing: the caller has the general case, and the errors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../core/row.h"
#include "act.h"
#include "rows.h"

namespace py = pybind11;

namespace sacfast {
namespace {

// The object as a C: Python can make an object without its __init__, by __new__, and then there is no C++ object in it.
template <class C>
C& made(py::handle self) {
  if (!py::isinstance<C>(self)) {
    throw py::type_error("expected " + std::string(py::str(py::type::of<C>().attr("__name__"))) + ", got " +
                         std::string(py::str(py::type::handle_of(self).attr("__name__"))));
  }
  void* const value = reinterpret_cast<py::detail::instance*>(self.ptr())->get_value_and_holder().value_ptr();
  if (value == nullptr) throw py::type_error("expected an object that its __init__ has made, got one by __new__ alone");
  return *static_cast<C*>(value);
}

// A dense NumPy array, whose elements are T in this machine's byte order, or nothing.
template <class T>
struct Dense {
  T* data = nullptr;
  py::ssize_t dims = 0;
  const py::ssize_t* shape = nullptr;

  explicit Dense(py::handle object) {
    if (!py::isinstance<py::array>(object)) return;
    const auto array = py::reinterpret_borrow<py::array>(object);
    const py::dtype dtype = array.dtype();
    constexpr int usual = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
    if (dtype.num() != py::dtype::num_of<T>() || (array.flags() & usual) != usual) return;
    if (dtype.byteorder() != '=' && dtype.byteorder() != '|') return;
    data = static_cast<T*>(const_cast<void*>(array.data()));
    dims = array.ndim();
    shape = array.shape();
  }
  // One that may be written to: NumPy gives read-only views of what is not to change.
  static Dense writable(py::handle object) {
    const Dense array(object);
    return array && py::reinterpret_borrow<py::array>(object).writeable() ? array : Dense(py::none());
  }

  explicit operator bool() const { return data != nullptr; }
  bool is(py::ssize_t rows) const { return data != nullptr && dims == 1 && shape[0] == rows; }
  bool is(py::ssize_t rows, py::ssize_t columns) const {
    return data != nullptr && dims == 2 && shape[0] == rows && shape[1] == columns;
  }
  py::ssize_t size() const { return std::accumulate(shape, shape + dims, py::ssize_t{1}, std::multiplies<>()); }
  // Whether they have a byte of memory in common.
  template <class U>
  bool overlaps(const Dense<U>& other) const {
    const auto address = [](const auto* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); };
    return address(data) < address(other.data + other.size()) && address(other.data) < address(data + size());
  }
};

using Matrix = py::array_t<float, py::array::c_style>;

// ---- Environments -----------------------------------------------------------------------------------------------

// Casts one leaf of an observation into the columns from `column` on, and moves `column` behind them.
template <class T>
bool add_columns(const Dense<T>& leaf, py::ssize_t rows, py::ssize_t dimension, py::ssize_t& column, float* flat) {
  if (!leaf || leaf.dims == 0 || leaf.shape[0] != rows || rows == 0) return false;
  const py::ssize_t columns = leaf.size() / rows;
  if (column + columns > dimension) return false;
  cast_columns(leaf.data, rows, columns, flat + column, dimension);
  column += columns;
  return true;
}

py::object flatten(const py::list& leaves, py::ssize_t rows, py::ssize_t dimension) {
  Matrix flat({rows, dimension});
  py::ssize_t column = 0;
  for (const py::handle leaf : leaves) {
    if (!add_columns(Dense<double>(leaf), rows, dimension, column, flat.mutable_data()) &&
        !add_columns(Dense<float>(leaf), rows, dimension, column, flat.mutable_data())) {
      return py::none();
    }
  }
  if (column != dimension) return py::none();
  return flat;
}

bool uneventful(py::handle observation, py::handle reward, py::handle terminated, py::handle truncated,
                py::handle env_id, py::handle starting, py::handle returns, py::handle lengths) {
  const Dense<float> seen(observation), rewards(reward);
  const Dense<bool> ends(terminated), cuts(truncated), first(starting);
  const Dense<std::int64_t> which(env_id), length = Dense<std::int64_t>::writable(lengths);
  const Dense<double> sum = Dense<double>::writable(returns);
  if (!which || which.dims != 1 || !seen || !first || first.dims != 1) return false;
  const py::ssize_t rows = which.shape[0], envs = first.shape[0];
  if (!rewards.is(rows) || !ends.is(rows) || !cuts.is(rows) || !sum.is(envs) || !length.is(envs)) return false;
  if (!all_finite(seen.data, seen.size()) || !all_finite(rewards.data, rows)) return false;
  if (any(ends.data, rows) || any(cuts.data, rows)) return false;
  for (py::ssize_t row = 0; row < rows; ++row) {
    const std::int64_t env = which.data[row];
    if (env < 0 || env >= envs || first.data[env]) return false;
  }
  for (py::ssize_t row = 0; row < rows; ++row) {
    sum.data[which.data[row]] += rewards.data[row];
    length.data[which.data[row]] += 1;
  }
  return true;
}

py::object rescale_action(py::handle action, py::ssize_t rows, py::handle range, float limit) {
  const Dense<float> given(action);
  const Dense<double> rule(range);
  if (!rule || rule.dims != 2 || !given.is(rows, rule.shape[1])) return py::none();
  const py::ssize_t columns = rule.shape[1];
  if (!rule.is(4, columns)) return py::none();
  Matrix clipped({rows, columns});
  py::array_t<double> native({rows, columns});
  const ActionRange by_column{rule.data, rule.data + columns, rule.data + 2 * columns, rule.data + 3 * columns};
  if (!rescale(given.data, rows, columns, limit, by_column, clipped.mutable_data(), native.mutable_data())) {
    return py::none();
  }
  return py::make_tuple(std::move(clipped), std::move(native));
}

// ---- Replay -----------------------------------------------------------------------------------------------------

py::tuple row_widths(py::ssize_t observation_dim, py::ssize_t action_dim) {
  const RowLayout layout{observation_dim, action_dim};
  return py::tuple(py::cast(layout.widths()));
}

py::ssize_t write_rows(py::handle ring, py::ssize_t position, py::handle observation, py::handle action,
                       py::handle reward, py::handle next_observation, py::handle terminated, float action_limit) {
  const Dense<float> all = Dense<float>::writable(ring);
  const Dense<float> before(observation), chosen(action), rewards(reward), after(next_observation);
  const Dense<bool> ends(terminated);
  if (!all || all.dims != 2 || !before || before.dims != 2 || !chosen || chosen.dims != 2) return -1;
  const py::ssize_t rows = before.shape[0], observed = before.shape[1], actions = chosen.shape[1];
  const py::ssize_t capacity = all.shape[0], width = all.shape[1];
  const RowLayout layout{observed, actions};
  if (!chosen.is(rows, actions) || !rewards.is(rows) || !after.is(rows, observed) || !ends.is(rows)) return -1;
  if (layout.width() != width || rows > capacity || position < 0 || position >= capacity) return -1;
  if (before.overlaps(all) || chosen.overlaps(all) || rewards.overlaps(all) || after.overlaps(all)) return -1;
  if (ends.overlaps(all)) return -1;
  if (!all_finite(before.data, before.size()) || !all_within(chosen.data, chosen.size(), action_limit)) return -1;
  if (!all_finite(rewards.data, rows) || !all_finite(after.data, after.size())) return -1;
  for (py::ssize_t row = 0; row < rows; ++row) {
    float* target = all.data + (position + row) % capacity * width;
    std::copy_n(before.data + row * observed, observed, target);
    std::copy_n(chosen.data + row * actions, actions, target + layout.action());
    target[layout.reward()] = rewards.data[row];
    std::copy_n(after.data + row * observed, observed, target + layout.next_observation());
    target[layout.terminated()] = ends.data[row] ? 1.0f : 0.0f;
  }
  return rows;
}

// ---- Policy -----------------------------------------------------------------------------------------------------

class Actor {
 public:
  // `parameters`: weight [outputs, inputs] and bias [outputs] of each layer. `noise_state` [2]: seed and offset of the
  // noise, or None: the mode. Both are read, and the offset advanced, where they lie.
  Actor(const std::vector<py::array>& parameters, const py::object& noise_state, const std::string& bounding,
        double low, double high, py::ssize_t most_rows)
      : parameters_(parameters),
        noise_state_(noise_state),
        bounding_(bounding_of(bounding)),
        low_(low),
        high_(high),
        most_rows_(most_rows) {
    if (parameters.empty() || parameters.size() % 2 != 0) {
      throw std::invalid_argument("parameters: expected a weight and a bias for each layer, got " +
                                  std::to_string(parameters.size()) + " arrays");
    }
    for (std::size_t i = 0; i < parameters.size(); i += 2) {
      const Dense<float> weight(parameters[i]), bias(parameters[i + 1]);
      if (!weight || weight.dims != 2 || !bias.is(weight.shape[0]) ||
          (!layers_.empty() && weight.shape[1] != layers_.back().outputs)) {
        throw std::invalid_argument(
            "parameters: expected dense float32 weights and biases that fit, got others in layer " +
            std::to_string(i / 2));
      }
      layers_.push_back({weight.data, bias.data, weight.shape[1], weight.shape[0]});
      widest_ = std::max({widest_, weight.shape[0], weight.shape[1]});
    }
    if (layers_.back().outputs % 2 != 0) {
      throw std::invalid_argument("parameters: expected a mean and a log_std for each action, got " +
                                  std::to_string(layers_.back().outputs) + " outputs");
    }
    const bool ordered = low < high && (bounding_ == LogStdBounding::kClamp || std::isfinite(high - low));
    if (bounding_ != LogStdBounding::kNone && !ordered) {
      throw std::invalid_argument("log_std_bounds: expected (low, high) with low < high, finite for 'tanh', got (" +
                                  std::to_string(low) + ", " + std::to_string(high) + ")");
    }
    if (noise_state.is_none()) return;
    const auto words = Dense<std::int64_t>::writable(noise_state);
    if (!words.is(2)) throw std::invalid_argument("noise_state: expected a writable int64 array [seed, offset]");
    noise_ = words.data;
  }

  py::object act(py::handle observation) const {
    const Dense<float> given(observation);
    if (!given || given.dims != 2 || given.shape[0] > most_rows_) return py::none();
    if (given.shape[1] != layers_.front().inputs) return py::none();
    const std::int64_t action_dim = layers_.back().outputs / 2;
    Matrix action({given.shape[0], static_cast<py::ssize_t>(action_dim)});
    NoiseSource source;
    if (noise_ != nullptr) {
      source.seed = static_cast<std::uint64_t>(noise_[0]);
      source.offset = static_cast<std::uint64_t>(noise_[1]++);
    }
    const ActParams params{layers_.data(),
                           static_cast<std::int64_t>(layers_.size()),
                           widest_,
                           action_dim,
                           given.shape[0],
                           given.data,
                           noise_ == nullptr,
                           source,
                           bounding_,
                           low_,
                           high_,
                           action.mutable_data()};
    SACFAST_CALL_CPU_AT(cpu_level_for_short_calls(), act, params);
    return action;
  }

 private:
  std::vector<py::array> parameters_;  // keeps the memory
  py::object noise_state_;
  LogStdBounding bounding_;
  double low_, high_;
  py::ssize_t most_rows_;
  std::vector<LinearLayer> layers_;
  std::int64_t widest_ = 1;
  std::int64_t* noise_ = nullptr;
};

}  // namespace
}  // namespace sacfast

PYBIND11_MODULE(_collect, m) {
  using namespace sacfast;
  m.doc() = "The usual case of what Python does with every step of the environments.";
  m.def("flatten", flatten, py::arg("leaves"), py::arg("rows"), py::arg("dimension"));
  m.def("uneventful", uneventful, py::arg("observation"), py::arg("reward"), py::arg("terminated"),
        py::arg("truncated"), py::arg("env_id"), py::arg("starting"), py::arg("returns"), py::arg("lengths"));
  m.def("rescale", rescale_action, py::arg("action"), py::arg("rows"), py::arg("action_range"), py::arg("limit"));
  m.def("row_widths", row_widths, py::arg("observation_dim"), py::arg("action_dim"));
  m.def("write_rows", write_rows, py::arg("ring"), py::arg("position"), py::arg("observation"), py::arg("action"),
        py::arg("reward"), py::arg("next_observation"), py::arg("terminated"), py::arg("action_limit"));
  py::class_<Actor>(m, "Actor")
      .def(
          py::init<const std::vector<py::array>&, const py::object&, const std::string&, double, double, py::ssize_t>(),
          py::arg("parameters"), py::arg("noise_state"), py::arg("log_std_bounding"), py::arg("log_std_low"),
          py::arg("log_std_high"), py::arg("most_rows"))
      .def(
          "act", [](py::handle self, py::handle observation) { return made<Actor>(self).act(observation); },
          py::arg("observation"));
}
