// An update on the GPU: what each step of sac_update.h launches.
//
// Machine launches bodies (kernels/) on lanes: launches of one lane run one after the other, `after` makes a lane wait
// for another one. A step returns before its work is done, so those that ask whether all is finite say yes: when
// something is not, the update's last kernel finds it, and nothing of the update is taken over.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "kernels/call.h"
#include "kernels/descent.h"
#include "kernels/finish.h"
#include "kernels/gather.h"
#include "kernels/heads.h"
#include "kernels/policy.h"
#include "kernels/product.h"
#include "memory.h"

namespace sacfast::SACFAST_ISA {

// The main lane, and what does not need its results: the critics on (x, a), and the actor on x.
enum class Lane : int { kMain, kCritics, kActor };
constexpr int kLanesOfWork = 3;

template <class T, class Machine>
class GpuSteps {
 public:
  // Reads buffer `now` of each pair, writes the other.
  GpuSteps(const GpuState<T>& state, Machine& machine, int learners, int now)
      : s_(state), settings_(state.settings), machine_(machine), learners_(learners), now_(now) {}

  // ---- 0 and 1 --------------------------------------------------------------------------------------------------

  void gather() {
    Gather<T> body{};
    begin(body);
    body.batch = s_.batch;
    body.observations = s_.observations;
    body.actions = s_.actions;
    body.stored = s_.stored;
    body.next = s_.next;
    body.current = s_.current;
    body.reward = s_.reward;
    body.terminated = s_.terminated;
    body.reward_scale = static_cast<T>(settings_.reward_scale);
    body.learn_alpha = settings_.learn_alpha;
    body.alpha = settings_.alpha;
    const double lrs[kSteps] = {settings_.actor_lr, settings_.critic_lr, settings_.critic_lr, settings_.value_lr,
                                settings_.alpha_lr};
    for (int i = 0; i < kSteps; ++i) body.lr[i] = lrs[i];
    body.beta1 = settings_.adam_beta1;
    body.beta2 = settings_.adam_beta2;
    body.eps = settings_.adam_eps;
    body.target_update_interval = settings_.target_update_interval;
    launch(Lane::kMain, body, Gather<T>::blocks(s_.batch, RowLayout{s_.observations, s_.actions}.width()));
    // From here on the lanes are independent, until one is told to wait.
    machine_.after(Lane::kCritics, Lane::kMain);
    machine_.after(Lane::kActor, Lane::kMain);
  }

  void next_action() { act(Lane::kMain, s_.next_draw, s_.next, true); }
  void action() { act(Lane::kActor, s_.draw, s_.current, false); }
  void target_critics() { target({Network::kQ1, Network::kQ2}); }
  void target_value() { target({Network::kValue}); }
  void bellman_target() {}  // done by the targets' heads

  // ---- 2 --------------------------------------------------------------------------------------------------------

  void critics() {
    critics_forward(Lane::kCritics, now_, s_.stored);
    machine_.after(Lane::kMain, Lane::kCritics);
    critic_heads(HeadUse::kCriticLoss, now_, s_.stored);
    deltas({Network::kQ1, Network::kQ2}, now_);
  }
  void step_critics() { descend({{Network::kQ1, Network::kQ1}, {Network::kQ2, Network::kQ1}}, s_.stored); }
  bool critics_are_finite() { return true; }

  // ---- 3 to 5 ---------------------------------------------------------------------------------------------------

  void critics_of_action() {
    machine_.after(Lane::kMain, Lane::kActor);
    critics_forward(Lane::kMain, now_ ^ 1, s_.current);
  }
  void soft_value() { critic_heads(HeadUse::kSoftValue, now_ ^ 1, s_.current); }

  void value_backward() {
    const GpuNetwork<T>& value = s_.network(Network::kValue);
    forward(Lane::kMain, {{&value, now(Network::kValue), s_.current, pair(), &value.hidden}});
    ScalarHeads<T> body = scalar_heads(HeadUse::kValueLoss);
    body.count = 1;
    body.heads[0] = head(Network::kValue, now(Network::kValue), value.hidden, s_.current, value.out);
    learn(body.heads[0], value);
    launch_heads(body, value);
    deltas({Network::kValue}, now_);
  }

  void action_gradient() { deltas({Network::kQ1, Network::kQ2}, now_ ^ 1); }

  void actor_backward() {
    const GpuNetwork<T>& actor = s_.network(Network::kActor);
    ActBackward<T> body{};
    begin_rows(body);
    body.head = s_.draw.head;
    body.noise = s_.draw.noise;
    for (const int which : {0, 1}) {
      const GpuNetwork<T>& critic = s_.network(kCritics[which]);
      const T* weight = part(kCritics[which], Part::kParameters, now_ ^ 1);  // of the first layer
      body.critics[which] = {critic.hidden_layers() > 0 ? critic.deltas[0] : critic.out_gradient, weight};
      body.depth = critic.layers[0].outputs;
    }
    body.action_gradient = s_.action_gradient;
    body.head_delta = actor.out_gradient;
    launch(Lane::kMain, body, row_blocks(s_.batch));

    const std::size_t top = actor.hidden_layers();
    if (top == 0) return;
    hidden_deltas({{&actor, now(Network::kActor)}}, top, actor.out_gradient);
    deltas({Network::kActor}, now_);
  }
  bool policy_losses_are_finite() { return true; }

  void step_actor() {
    descend({{Network::kActor, Network::kActor}}, s_.current);
    if (settings_.value_network) descend({{Network::kValue, Network::kValue}}, s_.current);
  }

  // ---- 6 and 7 --------------------------------------------------------------------------------------------------

  bool commit() {
    Finish<T> body{};
    begin(body);
    body.batch = s_.batch;
    body.q1 = s_.next_q1;  // of the critics on (x, a), kept there: see critic_heads
    body.q2 = s_.next_q2;
    body.target = s_.target;
    body.soft_value = s_.soft_value;
    body.log_prob = s_.draw.log_prob;
    body.value = settings_.value_network ? s_.network(Network::kValue).out : nullptr;
    body.learn_alpha = settings_.learn_alpha;
    body.deterministic_policy = settings_.deterministic_policy;
    body.target_entropy = static_cast<T>(settings_.target_entropy);
    launch(Lane::kMain, body, 1);
    return true;
  }

 private:
  static constexpr Network kCritics[2] = {Network::kQ1, Network::kQ2};

  // ---- Forward --------------------------------------------------------------------------------------------------

  struct ForwardPass {
    const GpuNetwork<T>* network;
    const T* parameters;
    const T* input;
    std::int64_t input_stride;
    const Hidden<T>* out;
  };

  // The hidden layers of networks of the same depth, layer by layer, side by side.
  void forward(Lane lane, std::initializer_list<ForwardPass> passes) {
    const std::size_t hidden_layers = passes.begin()->network->hidden_layers();
    for (std::size_t i = 0; i < hidden_layers; ++i) {
      ProductList<T, HiddenLayer<T>> list{};
      for (const ForwardPass& pass : passes) {
        const DenseLayer& layer = pass.network->layers[i];
        const T* input = i == 0 ? pass.input : (*pass.out)[i - 1];
        const std::int64_t stride = i == 0 ? pass.input_stride : layer.inputs;
        list.items[list.count++] = {s_.batch,
                                    layer.outputs,
                                    layer.inputs,
                                    {input, 1, stride},
                                    {pass.parameters + layer.weight, 1, layer.inputs},
                                    layer.outputs,
                                    {pass.parameters + layer.bias, (*pass.out)[i], layer.outputs}};
      }
      multiply(lane, list);
    }
  }

  void critics_forward(Lane lane, int buffer, const T* input) {
    const GpuNetwork<T>&q1 = s_.network(Network::kQ1), &q2 = s_.network(Network::kQ2);
    forward(lane, {{&q1, part(Network::kQ1, Part::kParameters, buffer), input, pair(), &q1.hidden},
                   {&q2, part(Network::kQ2, Part::kParameters, buffer), input, pair(), &q2.hidden}});
  }

  void target(std::initializer_list<Network> networks) {
    ScalarHeads<T> body = scalar_heads(HeadUse::kTarget);
    T* const outs[2] = {s_.next_q1, s_.next_q2};
    ForwardPass passes[2];
    for (const Network name : networks) {
      const int which = body.count++;
      const T* parameters = part(name, Part::kTarget, now_);
      passes[which] = {&s_.network(name), parameters, s_.next, pair(), &s_.target_hidden[which]};
      body.heads[which] = head(name, parameters, s_.target_hidden[which], s_.next, outs[which]);
    }
    if (body.count == 1) {
      forward(Lane::kMain, {passes[0]});
    } else {
      forward(Lane::kMain, {passes[0], passes[1]});
    }
    launch_heads(body, s_.network(*networks.begin()));
  }

  // ---- Heads ----------------------------------------------------------------------------------------------------

  // The actor on the observations in `pairs` [B, O + A], and its actions into them.
  void act(Lane lane, const Draw<T>& draw, T* pairs, bool of_next) {
    const GpuNetwork<T>& actor = s_.network(Network::kActor);
    forward(lane, {{&actor, now(Network::kActor), pairs, pair(), &draw.hidden}});
    const DenseLayer& layer = actor.layers.back();
    Act<T> body{};
    begin_rows(body);
    body.depth = layer.inputs;
    body.input = draw.hidden.empty() ? pairs : draw.hidden.back();
    body.input_stride = draw.hidden.empty() ? pair() : layer.inputs;
    body.weight = now(Network::kActor) + layer.weight;
    body.bias = now(Network::kActor) + layer.bias;
    body.value_network = settings_.value_network;
    body.of_next = of_next;
    body.pairs = pairs;
    body.head = draw.head;
    body.noise = draw.noise;
    body.log_probs = draw.log_probs;
    body.log_prob = draw.log_prob;
    launch(lane, body, row_blocks(s_.batch));
  }

  ScalarHeads<T> scalar_heads(HeadUse use) {
    ScalarHeads<T> body{};
    begin(body);
    body.use = use;
    body.batch = s_.batch;
    body.gamma = static_cast<T>(settings_.gamma);
    body.value_network = settings_.value_network;
    body.reward = s_.reward;
    body.terminated = s_.terminated;
    body.next_log_prob = s_.next_draw.log_prob;
    body.log_prob = s_.draw.log_prob;
    body.target = s_.target;
    body.soft_value = s_.soft_value;
    return body;
  }

  typename ScalarHeads<T>::Head head(Network name, const T* parameters, const Hidden<T>& hidden, const T* input,
                                     T* out) {
    const DenseLayer& layer = s_.network(name).layers.back();
    return {hidden.empty() ? input : hidden.back(),
            parameters + layer.weight,
            parameters + layer.bias,
            out,
            nullptr,
            nullptr};
  }

  void learn(typename ScalarHeads<T>::Head& head, const GpuNetwork<T>& network) {
    head.gradient = network.out_gradient;
    head.delta = network.hidden_layers() > 0 ? network.deltas.back() : nullptr;
  }

  void critic_heads(HeadUse use, int buffer, const T* input) {
    ScalarHeads<T> body = scalar_heads(use);
    // The losses are summed when the update ends: Q_i(x, a) takes the place of the targets' outputs, which have served.
    T* const outs[2] = {s_.next_q1, s_.next_q2};
    for (const Network name : kCritics) {
      const GpuNetwork<T>& critic = s_.network(name);
      const int which = body.count++;
      body.heads[which] = head(name, part(name, Part::kParameters, buffer), critic.hidden, input,
                               use == HeadUse::kCriticLoss ? outs[which] : critic.out);
      learn(body.heads[which], critic);
    }
    launch_heads(body, s_.network(Network::kQ1));
  }

  void launch_heads(ScalarHeads<T>& body, const GpuNetwork<T>& network) {
    body.depth = network.layers.back().inputs;
    body.input_stride = network.hidden_layers() > 0 ? body.depth : pair();
    launch(Lane::kMain, body, row_blocks(s_.batch));
  }

  // ---- Backward -------------------------------------------------------------------------------------------------

  struct BackwardPass {
    const GpuNetwork<T>* network;
    const T* parameters;
  };

  // From the deltas of the last hidden layer to those of all hidden layers.
  void deltas(std::initializer_list<Network> networks, int buffer) {
    const GpuNetwork<T>& first = s_.network(*networks.begin());
    for (std::size_t layer = first.hidden_layers(); layer-- > 1;) {
      std::vector<BackwardPass> passes;
      for (const Network name : networks) passes.push_back({&s_.network(name), part(name, Part::kParameters, buffer)});
      hidden_deltas(passes, layer, nullptr);
    }
  }

  // Through layer `layer`, whose deltas are `from` (null: those of that hidden layer), to the hidden layer before it.
  void hidden_deltas(const std::vector<BackwardPass>& passes, std::size_t layer, const T* from) {
    ProductList<T, HiddenDelta<T>> list{};
    for (const BackwardPass& pass : passes) {
      const GpuNetwork<T>& network = *pass.network;
      const DenseLayer& through = network.layers[layer];
      list.items[list.count++] = {s_.batch,
                                  through.inputs,
                                  through.outputs,
                                  {from != nullptr ? from : network.deltas[layer], 1, through.outputs},
                                  {pass.parameters + through.weight, through.inputs, 1},
                                  through.inputs,
                                  {network.hidden[layer - 1], network.deltas[layer - 1], through.inputs}};
    }
    multiply(Lane::kMain, list);
  }

  struct Descending {
    Network network, optimizer;
  };

  // The gradients of all layers, each taken right into its optimiser's step.
  void descend(std::initializer_list<Descending> networks, const T* network_input) {
    ProductList<T, Descent<T>> list{};
    for (const Descending& each : networks) {
      const GpuNetwork<T>& network = s_.network(each.network);
      for (std::size_t i = 0; i < network.layers.size(); ++i) {
        const DenseLayer& layer = network.layers[i];
        const T* delta = i == network.hidden_layers() ? network.out_gradient : network.deltas[i];
        const T* input = i == 0 ? network_input : network.hidden[i - 1];
        const std::int64_t input_stride = i == 0 ? pair() : layer.inputs;
        list.items[list.count++] = {layer.outputs,
                                    layer.inputs + 1,
                                    s_.batch,
                                    {delta, layer.outputs, 1},
                                    {input, input_stride, 1},
                                    layer.inputs,
                                    descent(each, static_cast<std::int64_t>(i), layer)};
        if (list.count == list.kMost) {
          multiply(Lane::kMain, list);
          list.count = 0;
        }
      }
    }
    if (list.count > 0) multiply(Lane::kMain, list);
  }

  Descent<T> descent(const Descending& of, std::int64_t number, const DenseLayer& layer) {
    const auto from = [&](Part part, int buffer) {
      T* flat = this->part(of.network, part, buffer);
      return flat == nullptr ? nullptr : flat + layer.weight;
    };
    const int next = now_ ^ 1;
    return {layer.inputs,
            layer.bias - layer.weight,
            from(Part::kParameters, now_),
            from(Part::kExpAvg, now_),
            from(Part::kExpAvgSq, now_),
            from(Part::kTarget, now_),
            from(Part::kParameters, next),
            from(Part::kExpAvg, next),
            from(Part::kExpAvgSq, next),
            from(Part::kTarget, next),
            of.network,
            of.optimizer,
            number,
            static_cast<T>(settings_.hard_target_update ? 1.0 : settings_.tau)};
  }

  // ---- Launches -------------------------------------------------------------------------------------------------

  std::int64_t pair() const { return s_.observations + s_.actions; }
  T* part(Network network, Part part, int buffer) const {
    return s_.network(network).parts[static_cast<int>(part)][buffer];
  }
  const T* now(Network network) const { return part(network, Part::kParameters, now_); }

  void begin(Body<T>& body) const {
    body.scalars = s_.scalars;
    body.learner_bytes = s_.bytes();
  }

  void begin_rows(PolicyRows<T>& body) const {
    begin(body);
    body.batch = s_.batch;
    body.observations = s_.observations;
    body.actions = s_.actions;
    body.bounding = settings_.log_std_bounding;
    body.low = static_cast<T>(settings_.log_std_low);
    body.high = static_cast<T>(settings_.log_std_high);
    body.deterministic = settings_.deterministic_policy;
  }

  template <class Epilogue>
  void multiply(Lane lane, const ProductList<T, Epilogue>& list) {
    if constexpr (std::is_same_v<T, float>) {
      switch (settings_.matmul_precision) {
        case Precision::kTf32:
          return multiply<TensorTile<Precision::kTf32>>(lane, list);
        case Precision::kBfloat16:
          return multiply<TensorTile<Precision::kBfloat16>>(lane, list);
        case Precision::kFloat32:
          break;
      }
    }
    multiply<ExactTile<T>>(lane, list);
  }

  template <class Tile, class Epilogue>
  void multiply(Lane lane, const ProductList<T, Epilogue>& list) {
    MatrixProducts<T, Epilogue, Tile> body{};
    begin(body);
    body.list = list;
    launch(lane, body, body.blocks());
  }

  template <class Kernel>
  void launch(Lane lane, const Kernel& body, std::int64_t blocks) {
    machine_.launch(lane, body, blocks, learners_);
  }

  const GpuState<T>& s_;
  const UpdateSettings& settings_;
  Machine& machine_;
  const int learners_, now_;
};

}  // namespace sacfast::SACFAST_ISA
