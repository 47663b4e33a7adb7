// One element of an Adam step with decoupled weight decay (AdamW, arXiv 1711.05101), and of the Polyak average of the
// parameter that it makes.
#pragma once

#include "adam.h"
#include "polyak.h"
#include "qualifiers.h"

namespace sacfast {

// What is the same for all elements of one step.
template <class T>
struct AdamPolyakFactors {
  AdamFactors<T> adam;
  T decay;  // 1 - lr weight_decay
  T tau;
};

namespace SACFAST_ISA {

template <class V, class T>
SACFAST_HD AdamState<V> adam_w_element(V gradient, AdamState<V> now, const AdamPolyakFactors<T>& factors) {
  now.parameter = now.parameter * factors.decay;
  return adam_element(gradient, now, factors.adam);
}

}  // namespace SACFAST_ISA
}  // namespace sacfast
