// CPU twin, compiled once for each instruction set.
#include "categorical.h"

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "../../core/categorical.h"
#include "../../core/simd.h"

namespace sacfast::SACFAST_ISA {
namespace {

constexpr std::int64_t kPadding = 2 * kFloats;  // readable numbers before and after a row in scratch memory

// exp(logit - largest logit) of a row, and their sum.
// The exps go to scratch memory: whole vectors, zero beyond the end. A masked store would be waited for by the load
// that follows. Calls each(j, loader, logit - largest logit, exp) for every vector.
template <class V, class T, class Each>
T exp_row(const T* logits, std::int64_t atoms, T* exps, Each each) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  V largest_lanes = broadcast<V>(lowest);
  for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
    largest_lanes = larger(vector.load_or(logits + j, lowest), largest_lanes);
  });
  const T largest = largest_of_lanes(largest_lanes);
  V sum{};
  for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
    const V below = vector.load_or(logits + j, lowest) - broadcast<V>(largest);
    const V value = exponential_of_negative(below);
    store<V>(exps + j, value);
    sum += value;
    each(j, vector, below, value);
  });
  return sum_of_lanes(sum);
}

// Splits each mass between the two atoms around its position. Positions are in [0, M - 1] or NaN.
template <class T>
void project(const T* masses, const T* positions, T scale, std::int64_t atoms, T* target) {
  const std::int64_t last_lower = atoms > 1 ? atoms - 2 : 0;
  for (std::int64_t i = 0; i < atoms; ++i) target[i] = T(0);
  for (std::int64_t j = 0; j < atoms; ++j) {
    const T position = positions[j];
    std::int64_t lower = position > T(0) ? static_cast<std::int64_t>(position) : 0;
    if (lower > last_lower) lower = last_lower;
    const T mass = masses[j] * scale, upper_share = position - static_cast<T>(lower);
    target[lower] += mass * (T(1) - upper_share);
    if (atoms > 1) target[lower + 1] += mass * upper_share;
  }
}

// The same where all masses, which add up to 1, have one position.
template <class T>
void project_to_one_place(T position, std::int64_t atoms, T* target) {
  for (std::int64_t i = 0; i < atoms; ++i) target[i] = T(0);
  const auto lower = static_cast<std::int64_t>(position);
  const T upper_share = position - static_cast<T>(lower);
  target[lower] = T(1) - upper_share;
  if (upper_share > T(0)) target[lower + 1] = upper_share;
}

// How far apart neighbours may be for project_evenly. From 0.8 on, at most four masses lie less than 1 from an atom,
// with a quarter of an atom to spare on either side; and those of a vector's atoms lie in two vectors.
constexpr float kLeastStep = 0.8f, kMostStep = 2.0f;

// The same for mass j at first + j step, or at the end that lies before it. Each atom of the target takes its shares of
// the few masses around it, so that no sum waits for another one in memory.
void project_evenly(const float* masses, float first, float step, float scale, std::int64_t atoms, float* target) {
  VecF lane{};
  for (int i = 0; i < kFloats; ++i) lane[i] = static_cast<float>(i);
  const VecF zero{}, one = broadcast<VecF>(1.0f);
  const float before_last = static_cast<float>(atoms - 2);
  VecF at_first{}, at_last{};  // where any number of masses may lie
  for (std::int64_t j = 0; j < atoms; j += kFloats) {
    const VecF mass = load<VecF>(masses + j), position = (lane + static_cast<float>(j)) * step + first;
    at_first += mass * smaller(larger(VecF(1.0f - position), zero), one);
    at_last += mass * smaller(larger(VecF(position - before_last), zero), one);
  }
  const float inverse_step = 1.0f / step;
  for_each_vector<VecF>(atoms, [&](std::int64_t i, auto vector) {
    const VecF atom = lane + static_cast<float>(i);
    const VecF nearest = (atom - (1.0f + first)) * inverse_step - 0.25f;  // what lies before it is too far away
    const float lowest = clip(nearest[0], static_cast<float>(-kPadding), static_cast<float>(atoms));
    const auto base = static_cast<std::int64_t>(std::floor(lowest));
    const VecF reach = broadcast<VecF>(2.0f * kFloats);
    VecI index = __builtin_convertvector(clip(VecF(nearest - static_cast<float>(base)), zero, reach), VecI);
    VecF j = __builtin_convertvector(index, VecF) + static_cast<float>(base), sum{};
    for (int k = 0; k < 4; ++k, index += 1, j += 1.0f) {
      const VecF distance = absolute(VecF(j * step + first - atom));
      sum += pick(masses + base, index) * larger(VecF(1.0f - distance), zero);
    }
    vector.store(target + i, sum * scale);
  });
  target[0] = sum_of_lanes(at_first) * scale;
  target[atoms - 1] = sum_of_lanes(at_last) * scale;
}

// What the rows of the target need besides their inputs: each array begins with its padding.
template <class T>
class TargetScratch {
 public:
  explicit TargetScratch(std::int64_t atoms)
      : stride_(atoms + 2 * kPadding), memory_(static_cast<std::size_t>(4 * stride_)) {}

  T* z() { return array(0); }
  T* positions() { return array(1); }
  T* exps(int critic) { return array(2 + critic); }

 private:
  T* array(std::int64_t i) { return memory_.data() + i * stride_ + kPadding; }

  std::int64_t stride_;
  std::vector<T> memory_;
};

// The target of one row, from exps that add up to `sum`.
template <class T>
void project_row(const BellmanRow<T>& sample, const Support<T>& support, const T* exps, T sum, std::int64_t atoms,
                 TargetScratch<T>& scratch, T* out) {
  using V = typename Widest<T>::type;
  const auto place = [&](T atom) {
    return atom_position(bellman_value(atom, sample), support.v_min, support.v_max, support.inverse_spacing,
                         support.last);
  };
  const T check = sum + place(support.v_min) + sample.discount;
  if (check != check) {  // one NaN makes all of the row NaN
    for (std::int64_t i = 0; i < atoms; ++i) out[i] = check;
    return;
  }
  if (sample.discount == T(0)) return project_to_one_place(place(support.v_min), atoms, out);  // terminated
  const T scale = T(1) / sum;
  if constexpr (std::is_same_v<T, float>) {
    if (atoms > 1 && sample.discount >= kLeastStep && sample.discount <= kMostStep) {
      const T first = (bellman_value(support.v_min, sample) - support.v_min) * support.inverse_spacing;
      return project_evenly(exps, first, sample.discount, scale, atoms, out);
    }
  }
  const BellmanRow<V> lanes{broadcast<V>(sample.reward), broadcast<V>(sample.discount), broadcast<V>(sample.entropy)};
  for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
    const V position =
        atom_position(bellman_value(vector.load(scratch.z() + j), lanes), broadcast<V>(support.v_min),
                      broadcast<V>(support.v_max), broadcast<V>(support.inverse_spacing), broadcast<V>(support.last));
    vector.store(scratch.positions() + j, position);
  });
  project(exps, scratch.positions(), scale, atoms, out);
}

template <class T>
struct Critic {
  const T* exps;
  T sum;
  T mean;  // of its atoms
};

// The critic whose mean is the smaller one.
template <class T>
Critic<T> choose_critic(const CategoricalTargetParams<T>& p, std::int64_t row, TargetScratch<T>& scratch) {
  using V = typename Widest<T>::type;
  const auto critic = [&](const Strided<T>& logits, T* exps) {
    V weighted{};
    const T sum = exp_row<V>(&element(logits, row, 0), p.atoms, exps,
                             [&](std::int64_t j, auto, V, V value) { weighted += value * load<V>(scratch.z() + j); });
    return Critic<T>{exps, sum, sum_of_lanes(weighted) / sum};
  };
  const Critic<T> first = critic(p.next_logits1, scratch.exps(0));
  if (p.next_logits2.data == nullptr) return first;
  const Critic<T> second = critic(p.next_logits2, scratch.exps(1));
  return takes_first(first.mean, second.mean) ? first : second;
}

template <class T>
void target(const CategoricalTargetParams<T>& p, std::int64_t begin, std::int64_t end) {
  const Support<T> support = Support<T>::of(p.v_min, p.v_max, p.atoms);
  TargetScratch<T> scratch(p.atoms);
  for (std::int64_t j = 0; j < p.atoms; ++j) scratch.z()[j] = support.atom(j);
  for (std::int64_t row = begin; row < end; ++row) {
    const Critic<T> chosen = choose_critic(p, row, scratch);
    project_row(bellman_row<T>(p.sample, row), support, chosen.exps, chosen.sum, p.atoms, scratch,
                p.target + row * p.atoms);
  }
}

template <class T>
void cross_entropy(const CrossEntropyParams<T>& p, std::int64_t begin, std::int64_t end) {
  using V = typename Widest<T>::type;
  const std::int64_t atoms = p.atoms;
  std::vector<T> exps(static_cast<std::size_t>(atoms + kPadding));
  for (std::int64_t row = begin; row < end; ++row) {
    const T *logits = &element(p.logits, row, 0), *target = &element(p.target, row, 0);
    V target_lanes{}, product_lanes{};
    const T sum = exp_row<V>(logits, atoms, exps.data(), [&](std::int64_t j, auto vector, V below, V) {
      const V t = vector.load(target + j);
      target_lanes += t;
      product_lanes += t * vector.kept(below);
    });
    const T target_sum = sum_of_lanes(target_lanes);
    p.loss[row] = target_sum * natural_log(sum) - sum_of_lanes(product_lanes);
    if (p.slope == nullptr) continue;
    T* slope = p.slope + row * atoms;
    const V inverse_sum = broadcast<V>(T(1) / sum);
    for_each_vector<V>(atoms, [&](std::int64_t j, auto vector) {
      vector.store(slope + j, cross_entropy_slope(V(load<V>(exps.data() + j) * inverse_sum), vector.load(target + j),
                                                  broadcast<V>(target_sum)));
    });
  }
}

}  // namespace

#define SACFAST_DEFINE(T)                                                                                     \
  void categorical_target(const CategoricalTargetParams<T>& params, std::int64_t begin, std::int64_t end) {   \
    target(params, begin, end);                                                                               \
  }                                                                                                           \
  void categorical_cross_entropy(const CrossEntropyParams<T>& params, std::int64_t begin, std::int64_t end) { \
    cross_entropy(params, begin, end);                                                                        \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
