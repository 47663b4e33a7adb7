// A critic of M atoms: Q = sum_j p_j z_j, p = softmax(logits), z_j = v_min + j spacing (arXiv 1707.06887).
#pragma once

#include "math.h"
#include "qualifiers.h"

namespace sacfast::SACFAST_ISA {

// The atoms. A single one lies at v_min.
template <class T>
struct Support {
  T v_min, v_max;
  T spacing, inverse_spacing;
  T last;  // M - 1

  SACFAST_HD static Support of(double v_min, double v_max, std::int64_t atoms) {
    const double last = static_cast<double>(atoms - 1);
    return {static_cast<T>(v_min), static_cast<T>(v_max), static_cast<T>(atoms > 1 ? (v_max - v_min) / last : 0.0),
            static_cast<T>(atoms > 1 ? last / (v_max - v_min) : 0.0), static_cast<T>(last)};
  }
  SACFAST_HD T atom(std::int64_t j) const { return v_min + static_cast<T>(j) * spacing; }
};

// Where a moved atom lies among the atoms: in [0, M - 1], after the clip of equation 7.
template <class V>
SACFAST_HD V atom_position(V moved, V v_min, V v_max, V inverse_spacing, V last) {
  return clip(V((clip(moved, v_min, v_max) - v_min) * inverse_spacing), constant<V>(0.0), last);
}

// The part of a mass at `position` that the atom with number `atom` takes: all at the atom, none at its neighbours.
template <class V>
SACFAST_HD V share_of_atom(V position, V atom) {
  const V share = constant<V>(1.0) - absolute(V(position - atom));
  const V zero = constant<V>(0.0);
  return share < zero ? zero : share;  // NaN stays
}

// Whether the first critic gives the target: it has the smaller mean. NaN counts as smaller than any number, so that a
// broken critic cannot hide behind its twin.
template <class T>
SACFAST_HD bool takes_first(T mean_1, T mean_2) {
  return mean_1 <= mean_2 || mean_1 != mean_1;
}

// Cross-entropy on soft targets: sum_j t_j (log sum exp(logits) - logit_j), and its slope in logit_j. `target_sum` is
// the sum of the row's t_j.
template <class V>
SACFAST_HD V cross_entropy_slope(V probability, V target, V target_sum) {
  return target_sum * probability - target;
}

}  // namespace sacfast::SACFAST_ISA
