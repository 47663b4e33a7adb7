"""The SAC update in plain torch and autograd: the oracle of the other backends, and the baseline to beat.

v1 is arXiv 1801.01290 (value network), v2 is arXiv 1812.05905 (target critics, learned temperature). The two
differ in where the Bellman target comes from and in a factor; everything else is shared.

One gradient update, in this order (x, a, r, x', terminated: a minibatch of B transitions; means are over B):

 0. alpha    = exp(log_alpha), or the fixed alpha. Every loss below uses this value, from before the update.
 1. target   v2: a', log_prob' ~ pi(.|x')                                        with the target critics Q':
                 y = reward_scale * r + gamma * (1 - terminated) * (min_i Q'_i(x', a') - alpha * log_prob')
             v1: y = reward_scale * r + gamma * (1 - terminated) * V'(x')        with the target value V'
 2. critic   v2: sum_i mean (Q_i(x, a) - y)^2     v1: sum_i mean 1/2 (Q_i(x, a) - y)^2     one Adam step
             (v2 writes the factor 1/2 too; it is left out, as in most implementations)
 3. policy   a~, log_prob ~ pi(.|x), reparameterised; soft value v = min_i Q_i(x, a~) - alpha * log_prob,
             with the critics as step 2 left them. The one sample serves steps 4, 5 and 6.
 4. value    v1 only: mean 1/2 (V(x) - v)^2, v held constant                               one Adam step
 5. actor    mean -v = mean (alpha * log_prob - min_i Q_i(x, a~))                          one Adam step
 6. alpha    if learned: -log_alpha * mean (log_prob + target_entropy)                     one Adam step
 7. target   at every `target_update_interval`-th update: V' or Q' moves to V or Q, by Polyak or by a copy

Noise is drawn in that order too: [B, A] for step 1 (v2 only), then [B, A] for step 3. v1's Algorithm 1 lists
the value before the critics; here they come first, so that one evaluation of them serves steps 4 and 5.

With `deterministic_policy` a' and a~ are tanh(mean), no noise is drawn, and log_prob, which does not exist,
is held at zero; alpha is 0 then. The log-std half of the actor's head gets no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from sacfast import ops
from sacfast.config import SACConfig
from sacfast.devices import with_index
from sacfast.learner import (
    Replay,
    Turn,
    check_batch,
    check_float32,
    check_noise,
    check_state,
    check_update_arguments,
    metric_names,
    random_start,
)
from sacfast.networks import Actor, TwinCritic, ValueNetwork, build_networks, check_learner_fits, network_bytes
from sacfast.ops.polyak import polyak_update_reference_
from sacfast.ops.tanh_gaussian import tanh_gaussian_rsample_reference
from sacfast.ops.twin_q import twin_q_target_reference
from sacfast.types import Batch, Metrics


class ReferenceLearner:
    """A `Learner` whose update is this file's plain torch.

    On the CPU it runs eagerly. On CUDA, where launching the small operators would take longer than running
    them, `update` captures it in a CUDA graph (see `_CapturedUpdate`).

    It belongs to the process that made it, and is updated by one thread at a time. The caller's no_grad, inference_mode
    and autocast do not reach into it.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        config: SACConfig | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Draw parameters (actor, critics, value network) and start the noise, both from `seed` >= 0.

        `config` None is `SACConfig()`. Raises ValueError for a size below 1, a negative seed, or a `matmul_precision`
        other than float32.
        """
        self.config = config = config or SACConfig()
        check_float32(config, "in the reference backend")
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.gradient_updates = 0
        self.metric_names = metric_names(config)
        self._turn = Turn()
        generator, noise_seed = random_start(seed)
        with torch.inference_mode(False):
            self._build_networks(with_index(device), dtype, generator)
            self.device = self.actor.flat.device
            self._build_temperature(dtype)
            self._choose_ops(noise_seed)
            self._metric_sum = torch.zeros(len(self.metric_names), device=self.device, dtype=torch.float64)
        self._captured = _CapturedUpdate(self) if self.device.type == "cuda" else None

    def _build_networks(self, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
        config = self.config
        self._check_fits(device, dtype)
        networks = build_networks(self.observation_dim, self.action_dim, config, device, dtype, generator)
        self._networks = networks
        self.critic = cast(TwinCritic, networks["critic"])
        if config.value_network:
            self.value = cast(ValueNetwork, networks["value"])
            self.target_value = cast(ValueNetwork, networks["target_value"])
            self._online, self._target = networks["value"], networks["target_value"]
        else:
            self.target_critic = cast(TwinCritic, networks["target_critic"])
            self._online, self._target = networks["critic"], networks["target_critic"]
        self._optimizers = {
            "actor": _adam(self.actor.flat, config.actor_lr, config),
            "critic": _adam(self.critic.flat, config.critic_lr, config),
        }
        if config.value_network:
            self._optimizers["value"] = _adam(self.value.flat, config.value_lr, config)

    def _check_fits(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raise ValueError when the least that updates hold at a time is too much for the device's memory."""
        observation_dim, action_dim, config = self.observation_dim, self.action_dim, self.config
        networks, stepped = network_bytes(observation_dim, action_dim, config, dtype)
        # Of a transition: its row; (x, a~), and what the actor and both critics keep of it for backward.
        kept = 3 * observation_dim + 2 * action_dim + 2 + 3 * sum(config.hidden_sizes)
        needed = networks + 2 * stepped + config.batch_size * kept * dtype.itemsize
        check_learner_fits(observation_dim, action_dim, config, needed, device)

    def _build_temperature(self, dtype: torch.dtype) -> None:
        config = self.config
        self.target_entropy = float(-self.action_dim) if config.target_entropy == "auto" else config.target_entropy
        if config.alpha == "auto":
            log_alpha = math.log(config.initial_alpha)
            self.log_alpha = torch.tensor(log_alpha, device=self.device, dtype=dtype)
            self.log_alpha.grad = self._log_alpha_grad = torch.zeros_like(self.log_alpha)
            self._optimizers["alpha"] = _adam(self.log_alpha, config.alpha_lr, config)
        else:
            self._fixed_alpha = torch.tensor(config.alpha, device=self.device, dtype=dtype)

    def _choose_ops(self, noise_seed: int) -> None:
        # Each family has its own source of noise: a Philox state in a tensor, which gives the same noise on
        # every device, or torch's generator.
        self._generator: Tensor | torch.Generator
        self._rsample: Callable[..., tuple[Tensor, Tensor]]
        self._twin_q_target: Callable[..., Tensor]
        if self.config.fused_ops:
            self._rsample = ops.tanh_gaussian_rsample
            self._twin_q_target = ops.twin_q_target
            self._polyak_update_ = ops.polyak_update_
            self._generator = ops.philox_state(noise_seed, device=self.device)
        else:
            self._rsample = tanh_gaussian_rsample_reference
            self._twin_q_target = twin_q_target_reference
            self._polyak_update_ = polyak_update_reference_
            self._generator = torch.Generator(self.device).manual_seed(noise_seed)

    @property
    def actor(self) -> Actor:
        """See `Learner.actor`."""
        return cast(Actor, self._networks["actor"])

    @property
    def alpha(self) -> Tensor:
        """The current temperature, a tensor [] of its own."""
        return self.log_alpha.exp() if self.config.alpha == "auto" else self._fixed_alpha

    def update(self, replay: Replay, gradient_steps: int = 1, should_stop: Callable[[], bool] | None = None) -> Metrics:
        """Make `gradient_steps` whole updates, each on its own minibatch; return their mean metrics.

        The metrics are means over the minibatch, then over the updates: `critic_loss`, `actor_loss`; `q_mean`
        of Q_i(x, a) over both critics before their step; `target_mean`, of y; `alpha`, before its step. Also
        `alpha_loss` when alpha is learned, `entropy`, of -log_prob in step 3, when the policy is stochastic,
        and `value_loss` with a value network. Nothing here waits for the device. `should_stop` is as in
        `Learner.update`.

        With 0 steps nothing changes and the means are NaN. Raises TypeError when `gradient_steps` is no whole
        number, ValueError when it is negative or when `replay` holds fewer transitions than one minibatch, both for a
        minibatch of another shape, dtype or device; RuntimeError when another thread is updating this learner, when
        this process was forked from the one that made it, or when a network's parameters lie elsewhere than they were
        made. On the CPU FloatingPointError when a loss, a gradient or an optimiser's second moment is not finite: that
        step and those after it are not made, the steps before it of that update are. On CUDA, where to look would mean
        to wait, the metrics show it.
        """
        gradient_steps = check_update_arguments(replay, gradient_steps, self.config.batch_size)
        with self._at_work():
            self._metric_sum.zero_()
            made = 0
            while made < gradient_steps:
                batch = replay.sample(self.config.batch_size)
                check_batch(self, batch)
                if self._captured is not None:
                    self._captured.run(batch)
                else:
                    self._metric_sum += self._update(batch, self._target_is_due())
                    self.gradient_updates += 1
                made += 1
                if should_stop is not None and should_stop():
                    break
            return Metrics(self.metric_names, self._metric_sum / made)

    def update_batch(self, batch: Batch, next_noise: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Make one update on `batch`, eagerly; return its metrics [len(metric_names)].

        `next_noise` (step 1) and `noise` (step 3) are standard normal [B, A]; None: drawn. Raises as `update` does,
        and ValueError for noise that the configured update has no use for.
        """
        check_batch(self, batch)
        check_noise(self, next_noise, noise)
        with self._at_work():
            metrics = self._update(batch, self._target_is_due(), next_noise, noise)
            self.gradient_updates += 1
        return metrics

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        # An update needs gradients, and the parameters' own precision, whatever the caller's mode.
        no_autocast = torch.autocast(self.device.type, enabled=False)
        with self._turn, torch.inference_mode(False), torch.enable_grad(), no_autocast:
            self._check_memory()
            yield

    def _check_memory(self) -> None:
        for name, network in self._networks.items():
            network.check_memory(f"learner.{name}")

    def _target_is_due(self) -> bool:
        return (self.gradient_updates + 1) % self.config.target_update_interval == 0

    def _update(
        self, batch: Batch, move_target: bool, next_noise: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        # The recipe of this file's docstring, and nothing that a CUDA graph would not record.
        batch = Batch(*(field.to(self.actor.flat.dtype) for field in batch))
        alpha = self.alpha
        target = self.bellman_target(batch, alpha, next_noise)
        metrics = self.critic_step(batch, target)

        action, log_prob = self.sample_action(batch.observation, noise)
        soft_value = torch.minimum(*self.critic(batch.observation, action)) - alpha * log_prob
        if self.config.value_network:
            metrics |= self.value_step(batch.observation, soft_value.detach())
        metrics |= self.actor_step(soft_value)
        mean_log_prob = log_prob.detach().mean()
        if self.config.alpha == "auto":
            metrics |= self.temperature_step(mean_log_prob)
        if move_target:
            self.target_step()
        metrics |= {"alpha": alpha, "entropy": -mean_log_prob}
        return torch.stack([metrics[name] for name in self.metric_names])

    def sample_action(self, observation: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw actions [B, A], with their log_prob [B], from the policy at observation [B, O]."""
        mean, log_std = self.actor(observation)
        if self.config.deterministic_policy:
            return mean.tanh(), mean.new_zeros(len(mean))
        return self._rsample(
            mean,
            log_std,
            noise=noise,
            generator=None if noise is not None else self._generator,
            log_std_bounding=self.config.log_std_bounding,
            log_std_bounds=self.config.log_std_bounds,
        )

    @torch.no_grad()
    def bellman_target(self, batch: Batch, alpha: Tensor, next_noise: Tensor | None = None) -> Tensor:
        """Return y [B]. v1: equation 8; v2: the target in equation 5."""
        reward = self.config.reward_scale * batch.reward
        if self.config.value_network:
            next_value: Tensor = self.target_value(batch.next_observation)
            return reward + self.config.gamma * (1 - batch.terminated) * next_value
        next_action, next_log_prob = self.sample_action(batch.next_observation, next_noise)
        next_q1, next_q2 = self.target_critic(batch.next_observation, next_action)
        return self._twin_q_target(reward, batch.terminated, next_q1, next_q2, next_log_prob, alpha, self.config.gamma)

    def critic_step(self, batch: Batch, target: Tensor) -> dict[str, Tensor]:
        """Move both critics towards `target` [B]. v1: equation 7; v2: equation 5 without its 1/2."""
        q1, q2 = self.critic(batch.observation, batch.action)
        loss = F.mse_loss(q1, target) + F.mse_loss(q2, target)
        if self.config.value_network:
            loss = 0.5 * loss
        self._descend("critic", loss)
        q_mean = 0.5 * (q1.detach().mean() + q2.detach().mean())
        return {"critic_loss": loss.detach(), "q_mean": q_mean, "target_mean": target.mean()}

    def value_step(self, observation: Tensor, soft_value: Tensor) -> dict[str, Tensor]:
        """Move V towards the `soft_value` [B] of the policy's own action. v1: equation 5."""
        loss = 0.5 * F.mse_loss(self.value(observation), soft_value)
        self._descend("value", loss)
        return {"value_loss": loss.detach()}

    def actor_step(self, soft_value: Tensor) -> dict[str, Tensor]:
        """Move the policy to a higher `soft_value` [B] of its action. v1: equation 12; v2: equation 9."""
        loss = -soft_value.mean()
        self._descend("actor", loss)
        return {"actor_loss": loss.detach()}

    def temperature_step(self, mean_log_prob: Tensor) -> dict[str, Tensor]:
        """Raise alpha when the entropy is below its target, lower it when above.

        v2: equation 18, as the authors' code has it, with log alpha in alpha's place.
        """
        gap = mean_log_prob + self.target_entropy
        loss = -self.log_alpha * gap
        self._log_alpha_grad.copy_(-gap)  # the loss is linear in log_alpha
        if self.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_moment("alpha", "log_alpha", self._log_alpha_grad, abs(float(gap)))
        self._optimizers["alpha"].step()
        return {"alpha_loss": loss}

    def target_step(self) -> None:
        """Let the target network follow the online one."""
        if self.config.target_update == "hard":
            self._target.flat.copy_(self._online.flat)
        else:
            self._polyak_update_(self._target.flat, self._online.flat, self.config.tau)

    def _descend(self, name: str, loss: Tensor) -> None:
        network = self._networks[name]
        network.backward(loss)
        if self.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_finite(f"{name}_loss", loss.detach())
            # The largest magnitude: one pass, and NaN if there is one.
            largest = torch.linalg.vector_norm(network.flat_grad, math.inf)
            self._check_finite(f"the gradient of {name}", largest)
            self._check_moment(name, name, network.flat_grad, float(largest))
        self._optimizers[name].step()

    def _check_moment(self, name: str, what: str, gradient: Tensor, largest: float) -> None:
        """Raise if a step would make the second moment infinite: the parameter would never move again."""
        if largest * largest <= torch.finfo(gradient.dtype).max:
            return  # a mean of what is representable is so too
        (state,) = self._optimizers[name].state.values()
        beta2 = self.config.adam_betas[1]
        moment = (beta2 * state["exp_avg_sq"]).addcmul(gradient * (1 - beta2), gradient)
        self._check_finite(f"the optimiser state of {what}", torch.linalg.vector_norm(moment, math.inf))

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"update {self.gradient_updates + 1}: {what} is not finite; no parameter has taken it on"
            )

    def wait(self) -> None:
        """Wait for the updates under way."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of everything that an exact resume needs, by name.

        `actor.*`, `critic.*`, `target_critic.*` (v1: `value.*`, `target_value.*`) are parameters;
        `*_optimizer.{step, exp_avg, exp_avg_sq}` Adam's state, its moments flat [P]; `log_alpha` the learned
        temperature; `gradient_updates` a count; `noise_state` the Philox state, or that of torch's generator. Raises
        RuntimeError when another thread is updating this learner, or when a network's parameters lie elsewhere than
        they were made.
        """
        with self._turn.reading():
            return self._state()

    def _state(self) -> dict[str, Tensor]:
        self._check_memory()
        state = {name: tensor.clone() for name, tensor in self._tensors().items()}
        state["gradient_updates"] = torch.tensor(self.gradient_updates)
        if isinstance(self._generator, torch.Generator):
            state["noise_state"] = self._generator.get_state()
        else:
            state["noise_state"] = self._generator.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` of a learner with the same configuration returned.

        Raises ValueError naming every entry that is missing, not expected, or of another shape or dtype, and
        TypeError for a value that is no tensor; RuntimeError as `update` does. Nothing has changed then.
        """
        with self._turn:
            check_state(state, expected=self._state())
            # In place throughout: networks, optimisers and CUDA graphs hold these very tensors.
            if isinstance(self._generator, torch.Generator):
                self._generator.set_state(state["noise_state"].cpu())
            else:
                self._generator.copy_(state["noise_state"])
            for name, tensor in self._tensors().items():
                tensor.copy_(state[name])
            self.gradient_updates = int(state["gradient_updates"])

    def _tensors(self) -> dict[str, Tensor]:
        # Parameters and optimiser state by name: the tensors that the update works on, not copies.
        tensors = {
            f"{prefix}.{name}": parameter.detach()
            for prefix, network in self._networks.items()
            for name, parameter in network.named_parameters()
        }
        if self.config.alpha == "auto":
            tensors["log_alpha"] = self.log_alpha
        for prefix, optimizer in self._optimizers.items():
            (adam_state,) = optimizer.state.values()
            tensors |= {f"{prefix}_optimizer.{key}": value for key, value in adam_state.items()}
        return tensors


class _CapturedUpdate:
    """The update as a CUDA graph: one launch instead of some hundred.

    A graph replays fixed work on fixed memory, so each minibatch is copied into one static batch, and updates
    that move the target network have a graph of their own. The first `WARM_UP` updates of either kind run
    eagerly on the stream that then captures: they are part of the training, and let the libraries allocate
    their workspaces before recording. Replays do not wait for the host, nor the host for them.
    """

    WARM_UP = 3

    def __init__(self, learner: ReferenceLearner) -> None:
        self._learner = learner
        self._stream = torch.cuda.Stream(learner.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._batch: Batch | None = None
        self._eager_runs = {True: 0, False: 0}
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}

    def run(self, batch: Batch) -> None:
        """Make one update on `batch` and add its metrics to the learner's sum."""
        with torch.cuda.device(self._learner.device):
            self._fill_static_batch(batch)
            move_target = self._learner._target_is_due()
            if move_target not in self._graphs and self._eager_runs[move_target] < self.WARM_UP:
                self._run_eagerly(move_target)
            else:
                if move_target not in self._graphs:
                    self._graphs[move_target] = self._capture(move_target)
                self._graphs[move_target].replay()
        self._learner.gradient_updates += 1

    def _fill_static_batch(self, batch: Batch) -> None:
        if self._batch is None:
            like = self._learner.actor.flat
            self._batch = Batch(*(like.new_empty(field.shape) for field in batch))
        for static, field in zip(self._batch, batch, strict=True):
            static.copy_(field, non_blocking=True)

    def _run_eagerly(self, move_target: bool) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._work(move_target)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._eager_runs[move_target] += 1

    def _capture(self, move_target: bool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        if isinstance(self._learner._generator, torch.Generator):
            graph.register_generator_state(self._learner._generator)
        # Other threads may allocate meanwhile: what they do is not recorded here, and spoils nothing.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            self._work(move_target)
        return graph

    def _work(self, move_target: bool) -> None:
        assert self._batch is not None
        self._learner._metric_sum += self._learner._update(self._batch, move_target)


def _adam(flat: Tensor, lr: float, config: SACConfig) -> torch.optim.Adam:
    # The state is made here and not at the first step, so that it can be saved and loaded before.
    optimizer = torch.optim.Adam([flat], lr, config.adam_betas, config.adam_eps, fused=True, capturable=flat.is_cuda)
    optimizer.state[flat] = {
        "step": torch.zeros((), device=flat.device),
        "exp_avg": torch.zeros_like(flat),
        "exp_avg_sq": torch.zeros_like(flat),
    }
    return optimizer
