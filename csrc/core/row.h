// The layout of one transition in the replay buffer, which is written down here alone.
//
//     x [O] | a [A] | r | x' [O] | terminated            float32, 2 O + A + 2 columns
#pragma once

#include <array>

#include "qualifiers.h"

namespace sacfast {

struct RowLayout {
  std::int64_t observations, actions;  // O, A

  // The columns at which the fields begin; x begins at 0.
  SACFAST_HD std::int64_t action() const { return observations; }
  SACFAST_HD std::int64_t reward() const { return observations + actions; }
  SACFAST_HD std::int64_t next_observation() const { return reward() + 1; }
  SACFAST_HD std::int64_t terminated() const { return next_observation() + observations; }
  SACFAST_HD std::int64_t width() const { return terminated() + 1; }

  // The columns of each field, in their order.
  std::array<std::int64_t, 5> widths() const { return {observations, actions, 1, observations, 1}; }

  // x and a, which lie side by side: what a critic reads.
  SACFAST_HD std::int64_t pair() const { return reward(); }
};

}  // namespace sacfast
