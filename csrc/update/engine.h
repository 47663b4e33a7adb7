// The fused SAC update: its settings, the state it advances, and what every backend's engine offers.
//
// Shape letters: B rows of a minibatch, O observation size, A action size. T is float; double serves tests.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "../core/cpu_level.h"
#include "../core/tanh_gaussian.h"

namespace sacfast {

// In what the operands of matrix products are rounded; sums are in float32.
enum class Precision : int { kFloat32, kTf32, kBfloat16 };

// The fields of SACConfig that the update reads, under the same names.
struct UpdateSettings {
  std::int64_t observation_dim = 0, action_dim = 0, batch_size = 0;
  std::vector<std::int64_t> hidden_sizes;
  double gamma = 0, reward_scale = 1;
  bool learn_alpha = true;  // alpha == "auto"
  double alpha = 0;         // where it is not learned
  double target_entropy = 0;
  double actor_lr = 0, critic_lr = 0, alpha_lr = 0, value_lr = 0;
  double adam_beta1 = 0, adam_beta2 = 0, adam_eps = 0;
  bool hard_target_update = false;
  double tau = 0;
  std::int64_t target_update_interval = 1;
  bool value_network = false, deterministic_policy = false;
  LogStdBounding log_std_bounding = LogStdBounding::kClamp;
  double log_std_low = 0, log_std_high = 0;
  Precision matmul_precision = Precision::kFloat32;  // the others: on a GPU only
};

// The networks that are learned, and what there is of each.
enum class Network : int { kActor = 0, kQ1 = 1, kQ2 = 2, kValue = 3 };
constexpr int kNetworks = 4;
enum class Part : int { kParameters = 0, kExpAvg = 1, kExpAvgSq = 2, kTarget = 3 };
constexpr int kParts = 4;

// All of the state that is not a network's.
struct UpdateCounters {
  double log_alpha = 0, log_alpha_exp_avg = 0, log_alpha_exp_avg_sq = 0;
  std::int64_t adam_steps[kNetworks] = {};  // of each network's optimiser; the twin critics share one
  std::int64_t alpha_steps = 0;
  std::int64_t gradient_updates = 0;
  std::uint64_t noise_seed = 0, noise_offset = 0;  // Philox: core/philox.h
};

enum class Metric : int { kCriticLoss, kActorLoss, kQMean, kTargetMean, kAlpha, kAlphaLoss, kEntropy, kValueLoss };
constexpr int kMetrics = 8;

// How many rows there are is not said: row numbers are not checked.
constexpr std::int64_t kUnknownCapacity = std::numeric_limits<std::int64_t>::max();

// The work of one call.
template <class T>
struct UpdateWork {
  const float* rows = nullptr;          // of the replay buffer [capacity, width]: core/row.h
  const std::int64_t* index = nullptr;  // [steps, B]: the rows that each minibatch takes
  std::int64_t steps = 0;
  const T* next_noise = nullptr;  // [B, A] of x', for tests; null: drawn. Every step takes the same.
  const T* noise = nullptr;       // [B, A] of x
  int threads = 1;
  double metrics[kMetrics] = {};  // sums to go on with: one sum over many calls has the bits of one over one call
  std::int64_t capacity = kUnknownCapacity;
};

constexpr const char* kRowFault = "index: expected rows in [0, ";

struct UpdateOutcome {
  std::int64_t updates = 0;           // made; fewer than asked for when something was not finite
  std::int64_t gradient_updates = 0;  // made since the start
  double metrics[kMetrics] = {};      // the work's sums, with the updates made added one by one
  // Why the next update was not made: the name of what was not finite, or kRowFault and a row number, or empty.
  std::string fault;
};

// Where the time of an update goes.
struct PhaseTime {
  const char* name;
  double seconds;  // all threads together
  double flop;     // of the matrix products
};

template <class T>
class UpdateEngine {
 public:
  virtual ~UpdateEngine() = default;

  virtual UpdateOutcome update(const UpdateWork<T>& work) = 0;

  // Parameters in torch's order, [P]: of each layer the weight [outputs, inputs], then the bias [outputs].
  virtual std::int64_t parameter_count(Network network) const = 0;  // 0 for a network that the settings leave out
  virtual void read(Network network, Part part, T* to) const = 0;
  virtual void write(Network network, Part part, const T* from) = 0;
  virtual UpdateCounters& counters() = 0;

  // From now on `update` takes the time of its phases. Returns the times so far.
  virtual std::vector<PhaseTime> profile() = 0;
};

// What one of several learners is to do in a call.
template <class T>
struct QueuedWork {
  const float* rows = nullptr;          // as in UpdateWork
  const std::int64_t* index = nullptr;  // [steps, B]
  std::int64_t steps = 0;               // may differ between learners; 0: none
  // [P]: the actor's parameters to begin with, and those that result; null: those that the engine has.
  T* actor = nullptr;
  std::int64_t capacity = kUnknownCapacity;  // rows that there are
};

template <class T>
struct QueuedCall {
  std::vector<QueuedWork<T>> work;  // [S]
  const T* next_noise = nullptr;    // as in UpdateWork, the same for all learners
  const T* noise = nullptr;
  double* metrics = nullptr;  // [S, kMetrics]: takes the sums over the updates made; null: not wanted
};

constexpr int kMostLearners = 64;  // what each is to do travels in the arguments of a kernel

// An engine that works while its caller goes on, for S learners side by side: a GPU's. All pointers of its work are to
// the GPU's memory, and so may be those of `read` and `write`, which wait for what was queued.
//
// A call that throws std::runtime_error because the GPU refused some of its work has made the updates that were queued
// before: `collect` says how many.
template <class T>
class QueuedEngine : public UpdateEngine<T> {
 public:
  // What follows is queued there (CUDA: a stream), behind what this engine has queued elsewhere.
  virtual void use_queue(void* queue) = 0;

  // Of which learner `read`, `write` and `counters` speak.
  virtual void select(int learner) = 0;

  virtual void enqueue(const QueuedCall<T>& call) = 0;

  // Whether what was queued is done; `collect` would not wait.
  virtual bool is_done() = 0;

  // Waits for what was queued, and says what came of the last call, for each learner. One that failed has made none of
  // the updates queued behind it, in this call and in later ones; now it goes on.
  virtual std::vector<UpdateOutcome> collect() = 0;
};

// On a GPU, in `memory` there, which stays the caller's. It is set up behind what `queue` has to do.
template <class T>
std::int64_t cuda_engine_bytes(const UpdateSettings& settings, int learners);
template <class T>
std::unique_ptr<QueuedEngine<T>> make_cuda_engine(const UpdateSettings& settings, int learners, void* memory,
                                                  void* queue);

// What an engine of T takes of the host's memory.
template <class T>
struct EngineBytes {
  std::int64_t engine, actor;  // the actor: its parameters alone
};

#define SACFAST_ENGINE_CPU(T)                                                                                     \
  SACFAST_DECLARE_CPU(void make_engine(const UpdateSettings& settings, std::unique_ptr<UpdateEngine<T>>& engine)) \
  SACFAST_DECLARE_CPU(void count_bytes(const UpdateSettings& settings, int threads, EngineBytes<T>& bytes))
SACFAST_ENGINE_CPU(float)
SACFAST_ENGINE_CPU(double)
#undef SACFAST_ENGINE_CPU

// Multiply-adds a second, times two, that `threads` threads reach on registers alone: the limit of any product.
SACFAST_DECLARE_CPU(void fma_peak(int threads, double seconds, double& flop_per_second))

}  // namespace sacfast
