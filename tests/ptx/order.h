// Which launches are over before which others begin: vector clocks.
//
// Launches of one stream, or of one path through a graph, form a chain, each after the one before. A launch knows of
// every chain how far it had come when the launch began.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ptx {

using LaunchId = std::uint32_t;

class Order {
 public:
  Order() : launches_(1) {}  // launch 0: what the host did before any other

  int new_chain() { return chains_++; }

  // A launch on a chain after those of `after`. Launches of one grid share `grid` (one that waits for the grid before
  // it within itself is two launches: order.h knows it before and after that).
  LaunchId add(int chain, const std::vector<LaunchId>& after, std::uint32_t grid) {
    Launch launch;
    launch.clock.assign(static_cast<std::size_t>(chains_), 0);
    for (const LaunchId id : after) {
      const Launch& before = launches_[id];
      for (std::size_t i = 0; i < before.clock.size(); ++i) {
        launch.clock[i] = std::max(launch.clock[i], before.clock[i]);
      }
    }
    // One that is not after the chain's last launch would stand for it: it begins a chain of its own.
    positions_.resize(static_cast<std::size_t>(chains_), 0);
    if (launch.clock[static_cast<std::size_t>(chain)] < positions_[static_cast<std::size_t>(chain)]) {
      chain = new_chain();
      positions_.push_back(0);
      launch.clock.push_back(0);
    }
    launch.chain = chain;
    launch.grid = grid;
    launch.position = ++positions_[static_cast<std::size_t>(chain)];
    launch.clock[static_cast<std::size_t>(chain)] = launch.position;
    launches_.push_back(std::move(launch));
    return static_cast<LaunchId>(launches_.size() - 1);
  }

  bool before(LaunchId a, LaunchId b) const {
    if (a == 0) return true;
    const Launch& first = launches_[a];
    const std::vector<std::uint32_t>& clock = launches_[b].clock;
    const auto chain = static_cast<std::size_t>(first.chain);
    return chain < clock.size() && clock[chain] >= first.position;
  }
  bool same_grid(LaunchId a, LaunchId b) const { return launches_[a].grid == launches_[b].grid; }

 private:
  struct Launch {
    int chain = 0;
    std::uint32_t grid = 0, position = 0;
    std::vector<std::uint32_t> clock;
  };
  int chains_ = 0;
  std::vector<std::uint32_t> positions_;
  std::vector<Launch> launches_;
};

}  // namespace ptx
