// One element of a Polyak (exponential moving) average: target + tau (online - target).
#pragma once

#include "math.h"
#include "qualifiers.h"

namespace sacfast::SACFAST_ISA {

// Above one half it is counted from the other end, as torch.lerp does, so that tau = 1 is an exact copy.
template <class V, class T>
SACFAST_HD V polyak_element(V target, V online, T tau) {
  return tau < T(0.5) ? V(target + tau * (online - target)) : V(online - (T(1) - tau) * (online - target));
}

}  // namespace sacfast::SACFAST_ISA
