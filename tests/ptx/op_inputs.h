// Inputs and outputs of an op, twice: in T on the device and in float64 for the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "core/bellman_row.h"
#include "core/strided.h"

namespace sacfast::SACFAST_ISA {

using ptx::Content;
using ptx::DeviceArray;
using ptx::expect_close;
using Doubles = std::vector<double>;

// The same numbers, in T on the device and in float64 for the CPU. Rows may lie apart.
template <class T>
struct Input {
  std::int64_t cols, stride;
  DeviceArray<T> device;
  Doubles cpu;

  Input(Mixer& mixer, std::int64_t rows, std::int64_t columns, double size, std::int64_t gap = 0)
      : cols(columns),
        stride(columns + gap),
        device("an input", static_cast<std::size_t>(rows * stride), Content::kValues, false),
        cpu(device.size()) {
    for (std::size_t i = 0; i < cpu.size(); ++i) set(i, size * mixer.uniform());
  }
  void set(std::size_t i, double value) { cpu[i] = ptx::exact(device[i] = ptx::rounded<T>(value)); }
  Strided<T> on_device() { return {device.data(), stride, 1}; }
  Strided<double> on_cpu() const { return {cpu.data(), stride, 1}; }
};

template <class T>
struct Output {
  DeviceArray<T> device;
  Doubles cpu;
  explicit Output(std::int64_t count)
      : device("an output", static_cast<std::size_t>(count), Content::kNothing), cpu(device.size()) {}
};

template <class T>
std::string name_of(const char* op, std::int64_t rows, std::int64_t cols) {
  return std::string(op) + " " + std::to_string(rows) + " x " + std::to_string(cols);
}

// Which inputs are tensors: bit 0 a mask of bool instead of terminated in T, bit 1 alpha, bit 2 gamma.
enum InputForm { kMask = 1, kAlpha = 2, kGamma = 4, kForms = 8 };

template <class T>
struct Samples {
  Input<T> reward, terminated, log_prob, alpha, gamma;
  DeviceArray<bool> mask;
  int form;

  Samples(Mixer& mixer, std::int64_t batch, int wanted)
      : reward(mixer, batch, 1, 3),
        terminated(mixer, batch, 1, 1),
        log_prob(mixer, batch, 1, 2),
        alpha(mixer, 1, 1, 1),
        gamma(mixer, batch, 1, 1),
        mask("terminated", static_cast<std::size_t>(batch)),
        form(wanted) {
    for (std::size_t i = 0; i < mask.size(); ++i) {
      mask[i] = i % 3 == 1;
      terminated.set(i, mask[i]);
    }
  }
  BellmanInputs<T> on_device() {
    return view<T>(reward.device.data(), terminated.device.data(), log_prob.device.data(), alpha.device.data(),
                   gamma.device.data());
  }
  BellmanInputs<double> on_cpu() {
    return view<double>(reward.cpu.data(), terminated.cpu.data(), log_prob.cpu.data(), alpha.cpu.data(),
                        gamma.cpu.data());
  }

 private:
  template <class V>
  BellmanInputs<V> view(const V* r, const V* t, const V* l, const V* a, const V* g) {
    BellmanInputs<V> inputs{{r, 1, 1}, {}, {}, {l, 1, 1}, {}, {}, 0.2, 0.97};
    if ((form & kMask) != 0) {
      inputs.terminated_mask = {mask.data(), 1, 1};
    } else {
      inputs.terminated = {t, 1, 1};
    }
    if ((form & kAlpha) != 0) inputs.alpha = {a, 0, 0};
    if ((form & kGamma) != 0) inputs.gamma = {g, 1, 1};
    return inputs;
  }
};

// A list of tensors, each a region of memory of its own: a kernel that runs over the end of one is found.
template <class T>
struct Tensors {
  std::vector<std::unique_ptr<Output<T>>> each;
  Tensors(Mixer& mixer, const std::vector<std::int64_t>& sizes, double low, double high) {
    for (const std::int64_t size : sizes) {
      each.push_back(std::make_unique<Output<T>>(size));
      device_has_values(*each.back());
      for (std::size_t i = 0; i < each.back()->cpu.size(); ++i) {
        const double value = low + (high - low) * 0.5 * (1 + mixer.uniform());
        each.back()->cpu[i] = ptx::exact(each.back()->device[i] = ptx::rounded<T>(value));
      }
    }
  }

 private:
  static void device_has_values(Output<T>& tensor) {
    ptx::device().memory.add(tensor.device.data(), tensor.device.size() * sizeof(T), "a tensor of a list", true,
                             Content::kValues, sizeof(T) < 4 ? sizeof(T) : 4);
  }
};

inline std::vector<std::int64_t> begins_of(const std::vector<std::int64_t>& sizes, std::int64_t& total) {
  std::vector<std::int64_t> begins;
  total = 0;
  for (const std::int64_t size : sizes) {
    begins.push_back(total);
    total += size;
  }
  return begins;
}

}  // namespace sacfast::SACFAST_ISA
