// Where the time of one thread's updates goes, and how many operations its matrix products make.
#pragma once

#include <chrono>
#include <cstdint>

namespace sacfast::SACFAST_ISA {

enum class Phase : int {
  kGather,
  kNextAction,
  kAction,
  kTarget,
  kCritics,
  kCriticStep,
  kCriticOfAction,
  kValue,
  kActionGradient,
  kActorBackward,
  kActorStep,
  kWaiting
};
constexpr int kPhases = 12;
constexpr const char* kPhaseNames[kPhases] = {
    "gather the minibatch",      "actor on x', a'",          "actor on x, a~",          "target critics, y",
    "critics forward, backward", "critics' gradients, Adam", "critics on (x, a~)",      "value network",
    "critics' gradients of a~",  "actor backward",           "actor's gradients, Adam", "waiting for other threads"};

// Belongs to one thread. While it is off it reads no clock.
class Profile {
 public:
  bool is_on = false;

  // Ends the phase in progress and begins another one.
  void start(Phase phase) {
    if (!is_on) return;
    stop();
    phase_ = static_cast<int>(phase);
    since_ = Clock::now();
  }

  void stop() {
    if (!is_on || phase_ < 0) return;
    seconds_[phase_] += std::chrono::duration<double>(Clock::now() - since_).count();
    phase_ = -1;
  }

  // Adds the operations of a matrix product to the phase in progress: two for each multiply-add.
  void count_flop(std::int64_t rows, std::int64_t products_a_row) {
    if (is_on) flop_[phase_] += 2.0 * static_cast<double>(rows) * static_cast<double>(products_a_row);
  }

  double seconds(int phase) const { return seconds_[phase]; }
  double flop(int phase) const { return flop_[phase]; }

 private:
  using Clock = std::chrono::steady_clock;

  double seconds_[kPhases] = {};
  double flop_[kPhases] = {};
  int phase_ = -1;  // none
  Clock::time_point since_;
};

}  // namespace sacfast::SACFAST_ISA
