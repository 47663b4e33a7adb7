// sacfast._C: the update engines for Python, without torch. Tensors on the host come as NumPy arrays on the same
// memory, tensors on a GPU as addresses: sacfast/engines.py checks them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "../core/row.h"
#include "engine.h"

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

// A method, or a field, that Python may ask any object for.
template <class C, class R, class... A>
auto checked_self(R (C::*method)(A...)) {
  return [method](py::handle self, A... args) -> R { return (made<C>(self).*method)(std::forward<A>(args)...); };
}
template <class C, class R, class... A>
auto checked_self(R (C::*method)(A...) const) {
  return [method](py::handle self, A... args) -> R { return (made<C>(self).*method)(std::forward<A>(args)...); };
}

template <class C, class Field>
void def_field(py::class_<C>& type, const char* name, Field C::* field) {
  type.def_property(
      name, [field](py::handle self) { return made<C>(self).*field; },
      [field](py::handle self, const Field& value) { made<C>(self).*field = value; });
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

template <class T>
const T* checked(const char* name, const Array<T>& array, const std::vector<py::ssize_t>& shape) {
  const std::vector<py::ssize_t> got(array.shape(), array.shape() + array.ndim());
  if (got != shape) {
    const std::string wanted = py::str(py::tuple(py::cast(shape)));
    throw std::invalid_argument(std::string(name) + ": expected shape " + wanted + ", got " + shape_of(array));
  }
  return array.data();
}

template <class T>
T* writable(const char* name, Array<T>& array) {
  if (!array.writeable()) {
    throw std::invalid_argument(std::string(name) + ": expected an array to write to, got a read-only one");
  }
  return array.mutable_data();
}

Precision precision_of(const std::string& name) {
  if (name == "float32") return Precision::kFloat32;
  if (name == "tf32") return Precision::kTf32;
  if (name == "bfloat16") return Precision::kBfloat16;
  throw std::invalid_argument("matmul_precision: expected 'float32', 'tf32' or 'bfloat16', got '" + name + "'");
}

void check_settings(const UpdateSettings& settings) {
  constexpr std::int64_t most_size = 1 << 30;  // the product of two has room for padding
  const auto check = [](const char* name, std::int64_t value, std::int64_t most) {
    if (value >= 1 && value <= most) return;
    throw std::invalid_argument(std::string(name) + ": expected an int " +
                                (value < 1 ? ">= 1" : "<= " + std::to_string(most)) + ", got " + std::to_string(value));
  };
  check("observation_dim", settings.observation_dim, most_size);
  check("action_dim", settings.action_dim, most_size);
  check("batch_size", settings.batch_size, most_size);
  check("target_update_interval", settings.target_update_interval, std::numeric_limits<std::int64_t>::max());
  for (const std::int64_t units : settings.hidden_sizes) check("hidden_sizes", units, most_size);
}

void check_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads: expected an int >= 1, got " + std::to_string(threads));
}

bool has_network(const UpdateSettings& settings, Network network) {
  return network != Network::kValue || settings.value_network;
}

Network network_of(const UpdateSettings& settings, const std::string& name) {
  static constexpr const char* kNames[kNetworks] = {"actor", "q1", "q2", "value"};
  for (int i = 0; i < kNetworks; ++i) {
    if (name == kNames[i] && has_network(settings, static_cast<Network>(i))) return static_cast<Network>(i);
  }
  throw std::invalid_argument("network: expected one that the settings have, got '" + name + "'");
}

Part part_of(const UpdateSettings& settings, Network network, const std::string& name) {
  static constexpr const char* kNames[kParts] = {"parameters", "exp_avg", "exp_avg_sq", "target"};
  const bool followed =
      settings.value_network ? network == Network::kValue : network == Network::kQ1 || network == Network::kQ2;
  for (int i = 0; i < kParts; ++i) {
    const auto part = static_cast<Part>(i);
    if (name == kNames[i] && (part != Part::kTarget || followed)) return part;
  }
  throw std::invalid_argument("part: expected one that the network has, got '" + name + "'");
}

std::vector<std::string> metric_names() {
  return {"critic_loss", "actor_loss", "q_mean", "target_mean", "alpha", "alpha_loss", "entropy", "value_loss"};
}

py::dict dict_of(const UpdateOutcome& outcome) {
  py::dict result;
  result["updates"] = outcome.updates;
  result["gradient_updates"] = outcome.gradient_updates;
  result["fault"] = outcome.fault;
  return result;
}

// ---- On the CPU ---------------------------------------------------------------------------------------------------

template <class T>
class Engine {
 public:
  explicit Engine(const UpdateSettings& settings) : settings_(settings) {
    check_settings(settings);
    SACFAST_CALL_CPU(make_engine, settings, engine_);
    shown_.resize(static_cast<std::size_t>(engine_->parameter_count(Network::kActor)));
  }

  static std::int64_t bytes(const UpdateSettings& settings, int threads) {
    check_settings(settings);
    check_threads(threads);
    EngineBytes<T> bytes{};
    SACFAST_CALL_CPU(count_bytes, settings, threads, bytes);
    return bytes.engine + bytes.actor;  // shown_
  }

  // Takes the actor's parameters from `actor` [P], where the caller has them, if they were written to since `update`
  // or `write` left them. Bytes are compared: a NaN, too, is a change.
  void adopt(const Array<T>& actor) {
    const T* given = checked("actor", actor, {static_cast<py::ssize_t>(shown_.size())});
    if (std::memcmp(given, shown_.data(), shown_.size() * sizeof(T)) == 0) return;
    engine_->write(Network::kActor, Part::kParameters, given);
    std::copy_n(given, shown_.size(), shown_.begin());
  }

  // `actor` [P]: see `adopt`; takes the parameters that result. `metrics` [kMetrics]: each update adds its own.
  py::dict update(const Array<float>& rows, const Array<std::int64_t>& index, int threads, Array<T> actor,
                  Array<double> metrics, const std::optional<Array<T>>& next_noise,
                  const std::optional<Array<T>>& noise) {
    UpdateWork<T> work;
    const std::int64_t width = RowLayout{settings_.observation_dim, settings_.action_dim}.width();
    work.rows = checked("rows", rows, {rows.ndim() == 2 ? rows.shape(0) : 0, static_cast<py::ssize_t>(width)});
    work.index = checked("index", index,
                         {index.ndim() == 2 ? index.shape(0) : 0, static_cast<py::ssize_t>(settings_.batch_size)});
    work.steps = index.shape(0);
    for (py::ssize_t i = 0; i < index.size(); ++i) {
      if (work.index[i] < 0 || work.index[i] >= rows.shape(0)) {
        throw std::invalid_argument("index: expected rows in [0, " + std::to_string(rows.shape(0)) + "), got " +
                                    std::to_string(work.index[i]));
      }
    }
    const std::vector<py::ssize_t> noise_shape = {static_cast<py::ssize_t>(settings_.batch_size),
                                                  static_cast<py::ssize_t>(settings_.action_dim)};
    if (next_noise) work.next_noise = checked("next_noise", *next_noise, noise_shape);
    if (noise) work.noise = checked("noise", *noise, noise_shape);
    check_threads(threads);
    work.threads = threads;
    std::copy_n(checked("metrics", metrics, {kMetrics}), kMetrics, work.metrics);
    T* const shown = writable("actor", actor);
    double* const sums = writable("metrics", metrics);
    adopt(actor);
    UpdateOutcome outcome;
    {
      const py::gil_scoped_release released;
      outcome = engine_->update(work);
    }
    engine_->read(Network::kActor, Part::kParameters, shown);
    std::copy_n(shown, shown_.size(), shown_.begin());
    std::copy_n(outcome.metrics, kMetrics, sums);
    return dict_of(outcome);
  }

  void read(const std::string& network, const std::string& part, Array<T> into) const {
    const Network which = network_of(settings_, network);
    const Part what = part_of(settings_, which, part);
    checked(part.c_str(), into, {static_cast<py::ssize_t>(engine_->parameter_count(which))});
    engine_->read(which, what, writable("into", into));
  }

  void write(const std::string& network, const std::string& part, const Array<T>& from) {
    const Network which = network_of(settings_, network);
    const Part what = part_of(settings_, which, part);
    const T* given = checked(part.c_str(), from, {static_cast<py::ssize_t>(engine_->parameter_count(which))});
    engine_->write(which, what, given);
    if (which == Network::kActor && what == Part::kParameters) std::copy_n(given, shown_.size(), shown_.begin());
  }

  UpdateCounters& counters() { return engine_->counters(); }

  py::list profile() {
    py::list phases;
    for (const PhaseTime& each : engine_->profile()) phases.append(py::make_tuple(each.name, each.seconds, each.flop));
    return phases;
  }

 private:
  UpdateSettings settings_;
  std::unique_ptr<UpdateEngine<T>> engine_;
  std::vector<T> shown_;  // the actor's parameters as the engine has them, in torch's order
};

template <class T>
void define_engine(py::module_& module, const char* name) {
  py::class_<Engine<T>>(module, name)
      .def(py::init([](py::handle settings) { return std::make_unique<Engine<T>>(made<UpdateSettings>(settings)); }),
           py::arg("settings"))
      .def("update", checked_self(&Engine<T>::update), py::arg("rows").noconvert(), py::arg("index").noconvert(),
           py::arg("threads"), py::arg("actor").noconvert(), py::arg("metrics").noconvert(),
           py::arg("next_noise").noconvert() = py::none(), py::arg("noise").noconvert() = py::none())
      .def_static(
          "bytes",
          [](py::handle settings, int threads) { return Engine<T>::bytes(made<UpdateSettings>(settings), threads); },
          py::arg("settings"), py::arg("threads"))
      .def("adopt", checked_self(&Engine<T>::adopt), py::arg("actor").noconvert())
      .def("read", checked_self(&Engine<T>::read), py::arg("network"), py::arg("part"), py::arg("into").noconvert())
      .def("write", checked_self(&Engine<T>::write), py::arg("network"), py::arg("part"), py::arg("values").noconvert())
      .def("profile", checked_self(&Engine<T>::profile))
      .def_property_readonly("counters", checked_self(&Engine<T>::counters),
                             py::return_value_policy::reference_internal);
}

double measured_fma_peak(int threads, double seconds) {
  check_threads(threads);
  const py::gil_scoped_release released;
  double flop_per_second = 0;
  SACFAST_CALL_CPU(fma_peak, threads, seconds, flop_per_second);
  return flop_per_second;
}

#if defined(SACFAST_WITH_CUDA)
// ---- On a GPU -----------------------------------------------------------------------------------------------------

// An address in the GPU's memory; 0 for none.
using Address = std::uintptr_t;

template <class P>
P* at(Address address) {
  return reinterpret_cast<P*>(address);
}

template <class T>
class GpuEngine {
 public:
  GpuEngine(const UpdateSettings& settings, int learners, Address memory, Address stream)
      : settings_(checked_settings(settings, learners)),
        learners_(learners),
        engine_(make_cuda_engine<T>(settings, learners, at<void>(memory), at<void>(stream))) {}

  static std::int64_t bytes(const UpdateSettings& settings, int learners) {
    return cuda_engine_bytes<T>(checked_settings(settings, learners), learners);
  }

  // What follows is queued there.
  void use_stream(Address stream) { engine_->use_queue(at<void>(stream)); }

  // Of each learner: the address and the number of its rows, the address of its index, its steps, and the address of
  // its actor.
  using Work = std::tuple<Address, std::int64_t, Address, std::int64_t, Address>;

  void enqueue(const std::vector<Work>& work, Address next_noise, Address noise, Address metrics) {
    if (work.size() != static_cast<std::size_t>(learners_)) {
      throw std::invalid_argument("work: expected that of " + std::to_string(learners_) + " learners, got " +
                                  std::to_string(work.size()));
    }
    QueuedCall<T> call;
    for (const auto& [rows, capacity, index, steps, actor] : work) {
      call.work.push_back({at<const float>(rows), at<const std::int64_t>(index), steps, at<T>(actor), capacity});
    }
    call.next_noise = at<const T>(next_noise);
    call.noise = at<const T>(noise);
    call.metrics = at<double>(metrics);
    const py::gil_scoped_release released;
    engine_->enqueue(call);
  }

  bool is_done() { return engine_->is_done(); }

  py::list collect() {
    std::vector<UpdateOutcome> outcomes;
    {
      const py::gil_scoped_release released;
      outcomes = engine_->collect();
    }
    py::list all;
    for (const UpdateOutcome& each : outcomes) all.append(dict_of(each));
    return all;
  }

  void read(const std::string& network, const std::string& part, Address into) const {
    const Network which = network_of(settings_, network);
    engine_->read(which, part_of(settings_, which, part), at<T>(into));
  }

  void write(const std::string& network, const std::string& part, Address from) {
    const Network which = network_of(settings_, network);
    engine_->write(which, part_of(settings_, which, part), at<const T>(from));
  }

  void select(int learner) { engine_->select(learner); }
  UpdateCounters& counters() { return engine_->counters(); }

 private:
  static const UpdateSettings& checked_settings(const UpdateSettings& settings, int learners) {
    check_settings(settings);
    if (learners < 1 || learners > kMostLearners) {
      throw std::invalid_argument("learners: expected an int in [1, " + std::to_string(kMostLearners) + "], got " +
                                  std::to_string(learners));
    }
    return settings;
  }

  UpdateSettings settings_;
  int learners_;
  std::unique_ptr<QueuedEngine<T>> engine_;
};

template <class T>
void define_gpu_engine(py::module_& module, const char* name) {
  py::class_<GpuEngine<T>>(module, name)
      .def(py::init([](py::handle settings, int learners, Address memory, Address stream) {
             return std::make_unique<GpuEngine<T>>(made<UpdateSettings>(settings), learners, memory, stream);
           }),
           py::arg("settings"), py::arg("learners"), py::arg("memory"), py::arg("stream"))
      .def_static(
          "bytes",
          [](py::handle settings, int learners) {
            return GpuEngine<T>::bytes(made<UpdateSettings>(settings), learners);
          },
          py::arg("settings"), py::arg("learners"))
      .def("use_stream", checked_self(&GpuEngine<T>::use_stream), py::arg("stream"))
      .def("enqueue", checked_self(&GpuEngine<T>::enqueue), py::arg("work"), py::arg("next_noise"), py::arg("noise"),
           py::arg("metrics"))
      .def("is_done", checked_self(&GpuEngine<T>::is_done))
      .def("collect", checked_self(&GpuEngine<T>::collect))
      .def("select", checked_self(&GpuEngine<T>::select), py::arg("learner"))
      .def("read", checked_self(&GpuEngine<T>::read), py::arg("network"), py::arg("part"), py::arg("into"))
      .def("write", checked_self(&GpuEngine<T>::write), py::arg("network"), py::arg("part"), py::arg("values"))
      .def_property_readonly("counters", checked_self(&GpuEngine<T>::counters),
                             py::return_value_policy::reference_internal);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The fused SAC update.";

  py::class_<UpdateSettings> settings(module, "UpdateSettings");
  settings.def(py::init<>())
      .def_property("log_std_bounding", nullptr,
                    [](py::handle self, const std::string& name) {
                      made<UpdateSettings>(self).log_std_bounding = bounding_of(name);
                    })
      .def_property("matmul_precision", nullptr, [](py::handle self, const std::string& name) {
        made<UpdateSettings>(self).matmul_precision = precision_of(name);
      });
#define SACFAST_FIELD(name) def_field(settings, #name, &UpdateSettings::name)
  SACFAST_FIELD(observation_dim);
  SACFAST_FIELD(action_dim);
  SACFAST_FIELD(batch_size);
  SACFAST_FIELD(hidden_sizes);
  SACFAST_FIELD(gamma);
  SACFAST_FIELD(reward_scale);
  SACFAST_FIELD(learn_alpha);
  SACFAST_FIELD(alpha);
  SACFAST_FIELD(target_entropy);
  SACFAST_FIELD(actor_lr);
  SACFAST_FIELD(critic_lr);
  SACFAST_FIELD(alpha_lr);
  SACFAST_FIELD(value_lr);
  SACFAST_FIELD(adam_beta1);
  SACFAST_FIELD(adam_beta2);
  SACFAST_FIELD(adam_eps);
  SACFAST_FIELD(hard_target_update);
  SACFAST_FIELD(tau);
  SACFAST_FIELD(target_update_interval);
  SACFAST_FIELD(value_network);
  SACFAST_FIELD(deterministic_policy);
  SACFAST_FIELD(log_std_low);
  SACFAST_FIELD(log_std_high);
#undef SACFAST_FIELD

  py::class_<UpdateCounters> counters(module, "UpdateCounters");
  def_field(counters, "log_alpha", &UpdateCounters::log_alpha);
  def_field(counters, "log_alpha_exp_avg", &UpdateCounters::log_alpha_exp_avg);
  def_field(counters, "log_alpha_exp_avg_sq", &UpdateCounters::log_alpha_exp_avg_sq);
  def_field(counters, "alpha_steps", &UpdateCounters::alpha_steps);
  def_field(counters, "gradient_updates", &UpdateCounters::gradient_updates);
  counters
      .def_property(
          "noise_state",
          [](py::handle self) {
            const auto& of = made<UpdateCounters>(self);
            return py::make_tuple(static_cast<std::int64_t>(of.noise_seed), static_cast<std::int64_t>(of.noise_offset));
          },
          [](py::handle self, const std::pair<std::int64_t, std::int64_t>& state) {
            auto& of = made<UpdateCounters>(self);
            of.noise_seed = static_cast<std::uint64_t>(state.first);
            of.noise_offset = static_cast<std::uint64_t>(state.second);
          })
      .def_property(
          "adam_steps",
          [](py::handle self) {
            const auto& of = made<UpdateCounters>(self);
            return std::vector<std::int64_t>(of.adam_steps, of.adam_steps + kNetworks);
          },
          [](py::handle self, const std::array<std::int64_t, kNetworks>& steps) {
            std::copy(steps.begin(), steps.end(), made<UpdateCounters>(self).adam_steps);
          });

  define_engine<float>(module, "Engine32");
  define_engine<double>(module, "Engine64");
#if defined(SACFAST_WITH_CUDA)
  define_gpu_engine<float>(module, "GpuEngine32");
  define_gpu_engine<double>(module, "GpuEngine64");
#endif
  module.attr("METRICS") = metric_names();
  module.def("fma_peak", &measured_fma_peak, py::arg("threads"), py::arg("seconds"),
             "Measure the multiply-adds a second, times two, that the threads reach together on registers alone.");
}

}  // namespace sacfast
