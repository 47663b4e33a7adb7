// What the cases share: memory of the device, comparison with an expectation, and a line of the report for each group.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include "../csrc/expect.h"
#include "runtime.h"

namespace ptx {

// Memory at an address such as the device's allocations have, so that counts of sectors do not depend on the host.
class Allocation {
 public:
  Allocation(std::size_t bytes, char fill) : memory_(bytes + kAlignment, fill) {}
  char* data() {
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory_.data()) % kAlignment;
    return memory_.data() + (kAlignment - past) % kAlignment;
  }

 private:
  static constexpr std::size_t kAlignment = 256;
  std::vector<char> memory_;
};

// An array in the device's memory. Kernels may touch nothing else. What has no values yet is full of NaN.
template <class T>
class DeviceArray {
 public:
  DeviceArray(const char* name, std::size_t count, Content content = Content::kValues, bool is_writable = true)
      : memory_(count * sizeof(T), content == Content::kNothing ? '\xff' : '\0'),
        values_(reinterpret_cast<T*>(memory_.data())),
        count_(count) {
    constexpr int granule = sizeof(T) < 4 ? sizeof(T) : 4;
    device().memory.add(values_, count * sizeof(T), name, is_writable, content, granule);
  }
  ~DeviceArray() { device().memory.remove(values_); }
  DeviceArray(const DeviceArray&) = delete;

  T* data() { return values_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return values_[i]; }
  T* begin() { return values_; }
  T* end() { return values_ + count_; }

 private:
  Allocation memory_;
  T* values_;
  std::size_t count_;
};

template <class T>
T rounded(double value) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half(static_cast<float>(value));
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}
template <class T>
double exact(T value) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(value);
  else
    return value;
}

template <class T>
constexpr const char* kName = std::is_same_v<T, float>    ? "float32"
                              : std::is_same_v<T, double> ? "float64"
                              : std::is_same_v<T, __half> ? "float16"
                                                          : "bfloat16";

// Of results of a size of about one: some units in the last place of the arithmetic, which is float32 for the half
// types, and where a result is rounded to a half type half a unit of that.
template <class T>
constexpr double kTolerance = std::is_same_v<T, double>   ? 1e-13
                              : std::is_same_v<T, float>  ? 4e-6
                              : std::is_same_v<T, __half> ? 0x1p-11 + 4e-6
                                                          : 0x1p-8 + 4e-6;

// Compares results with an expectation in float64, in units of `scale` or of the expected value where that is larger.
template <class T>
void expect_close(const std::string& name, DeviceArray<T>& found, const std::vector<double>& expected,
                  double scale = 1) {
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double got = exact(found[i]);
    if (std::isnan(got) && std::isnan(expected[i])) continue;
    const double apart = std::fabs(got - expected[i]) / std::fmax(scale, std::fabs(expected[i]));
    worst = std::isnan(apart) ? INFINITY : std::fmax(worst, apart);
  }
  if (worst > kTolerance<T>) std::printf("%s, %s: %g from the expected values\n", name.c_str(), kName<T>, worst);
  EXPECT(found.size() == expected.size());
  EXPECT(worst <= kTolerance<T>);
}

// One line of the report: what the cases of a group have run and found, since the group before.
class Groups {
 public:
  void done(const std::string& name, int cases);

 private:
  std::uint64_t instructions_ = 0, launches_ = 0, faults_ = 0;
};

// The groups of cases. `large`: at the sizes of real training too.
void run_tiny_cases(Groups& groups);
void run_float_op_cases(Groups& groups);
void run_op_cases(Groups& groups, bool large);
void run_small_case(Groups& groups, const std::string& which);
void run_update_cases(Groups& groups, bool large);

}  // namespace ptx
