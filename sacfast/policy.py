"""Acts: from a batch of observations to a batch of actions, on the actor's own parameters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sacfast import collect, ops
from sacfast.networks import ACTIVATIONS, Actor
from sacfast.types import FloatArray

EAGER_CALLS = 3
"""Calls for a number of rows on a GPU before a CUDA graph is recorded for it: libraries set themselves up in the
first, and an evaluation whose episodes end one by one has many numbers of rows."""


MOST_GRAPHS = 16
"""CUDA graphs that a policy records. Each holds memory for its number of rows; further numbers are acted on eagerly."""

NATIVE_ROWS = 64
"""Most rows for which acting is one native call on the CPU; with more of them torch's products are faster."""


class Policy:
    """A tanh-squashed Gaussian policy, stochastic or deterministic.

    It reads the parameters where `actor` has them, so it follows every update of a learner at once. A call
    for a few rows costs little more than its matrix products: no module, no autograd, no copied parameter. On the CPU
    it is one native call (with relu and without exploration noise), on a GPU one launch: see `_ActingGraph`.
    """

    def __init__(
        self,
        actor: Actor,
        deterministic: bool = False,
        seed: int = 0,
        log_std_bounding: Literal["none", "clamp", "tanh"] = "clamp",
        log_std_bounds: tuple[float, float] = (-20.0, 2.0),
        exploration_noise: float = 0.0,
    ) -> None:
        """Take a float32 `actor`, shared and not copied.

        Stochastic: action = tanh(mean + std * noise), with the log-std convention that the actor is trained
        with. `deterministic`: tanh(mean), plus noise of standard deviation `exploration_noise` in units of
        the action, clipped to [-1, 1]. `seed` starts the noise. Raises TypeError for an actor of another
        dtype, ValueError for a negative `exploration_noise`, or one other than 0 for a stochastic policy.
        """
        if actor.flat.dtype != torch.float32:
            raise TypeError(f"actor: expected parameters in torch.float32, got {actor.flat.dtype}")
        if not 0 <= exploration_noise < math.inf:
            raise ValueError(f"exploration_noise: expected a float in [0, inf), got {exploration_noise!r}")
        if exploration_noise and not deterministic:
            raise ValueError(f"exploration_noise: expected 0.0 for a stochastic policy, got {exploration_noise!r}")
        self.deterministic = deterministic
        self._exploration_noise = exploration_noise
        self._log_std_bounding = log_std_bounding
        self._log_std_bounds = log_std_bounds
        self._observation_dim = actor.observation_dim
        self._device = actor.flat.device
        # The sampling op is cheapest on a Philox state; exploration noise comes from torch's generator.
        self._noise_state = ops.philox_state(seed, device=self._device)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._activation = actor.activation
        self._native: collect.Actor | None = None  # does in one call what `_act` does in ten
        if self._device.type == "cpu" and self._activation is ACTIVATIONS["relu"] and not exploration_noise:
            parameters = [parameter.detach().numpy() for parameter in actor.parameters()]
            noise_state = None if deterministic else self._noise_state.numpy()
            self._native = collect.Actor(parameters, noise_state, log_std_bounding, *log_std_bounds, NATIVE_ROWS)
        *self._hidden, (weight, bias) = _transposed_layers(actor)
        # The head's first half is the mean, all that a deterministic policy needs.
        outputs = actor.action_dim if deterministic else 2 * actor.action_dim
        self._head = weight[:, :outputs], bias[:outputs]
        self._graphs: dict[int, _ActingGraph] = {}  # by number of rows
        self._recorder: _Recorder | None = None
        self._eager_calls: Counter[int] = Counter()

    def act(self, observation: FloatArray) -> FloatArray:
        """Map observation [n, O] float32 to a new array of actions [n, A] float32 in [-1, 1].

        Raises TypeError for anything but a float32 array, ValueError for another shape.
        """
        if self._native is not None and (action := self._native.act(observation)) is not None:
            return action
        self._check(observation)
        if self._native is not None and len(observation) <= NATIVE_ROWS:  # strided, or not aligned
            return self.act(np.array(observation, order="C"))
        return self._act_by_torch(observation)

    @torch.inference_mode()
    def _act_by_torch(self, observation: FloatArray) -> FloatArray:
        if torch.is_autocast_enabled(self._device.type):  # it would halve the precision unsaid
            with torch.autocast(self._device.type, enabled=False):
                return self._act_by_torch(observation)
        if self._device.type == "cuda":
            return self._act_on_gpu(observation)
        return self._act(torch.from_numpy(observation)).numpy()

    def _act_on_gpu(self, observation: FloatArray) -> FloatArray:
        """Act eagerly until it is known that so many rows come again and again."""
        rows = len(observation)
        with torch.cuda.device(self._device):
            if rows not in self._graphs:
                x = torch.from_numpy(observation).to(self._device)
                is_new = rows == 0 or self._eager_calls[rows] < EAGER_CALLS
                if is_new or len(self._graphs) == MOST_GRAPHS:
                    self._eager_calls[rows] += is_new
                    return self._act(x).cpu().numpy()
                self._recorder = self._recorder or _Recorder(self._device)
                generator = self._generator if self._exploration_noise else None
                self._graphs[rows] = _ActingGraph(self._act, x, generator, self._recorder)
            return self._graphs[rows].act(observation)

    def _act(self, x: Tensor) -> Tensor:
        for weight, bias in self._hidden:
            x = self._activation(torch.addmm(bias, x, weight))
        weight, bias = self._head
        x = torch.addmm(bias, x, weight)
        return self._deterministic_action(x) if self.deterministic else self._stochastic_action(x)

    def _deterministic_action(self, mean: Tensor) -> Tensor:
        action = mean.tanh_()
        if self._exploration_noise:
            noise = torch.randn(action.shape, generator=self._generator, device=self._device)
            action.add_(noise, alpha=self._exploration_noise).clamp_(-1, 1)
        return action

    def _stochastic_action(self, head: Tensor) -> Tensor:
        mean, log_std = head.chunk(2, dim=-1)
        action, _ = ops.tanh_gaussian_rsample(
            mean,
            log_std,
            generator=self._noise_state,
            log_std_bounding=self._log_std_bounding,
            log_std_bounds=self._log_std_bounds,
        )
        return action

    def _check(self, observation: FloatArray) -> None:
        if not isinstance(observation, np.ndarray) or observation.dtype != np.float32:
            kind = observation.dtype if isinstance(observation, np.ndarray) else type(observation).__name__
            raise TypeError(f"observation: expected a float32 array, got {kind}")
        if observation.ndim != 2 or observation.shape[1] != self._observation_dim:
            raise ValueError(f"observation: expected shape (n, {self._observation_dim}), got {observation.shape}")

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the noise's state, the only one that is the policy's own, by name."""
        return {"noise_state": self._noise_state.clone(), "exploration_state": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue the noise from what `state_dict` returned.

        Raises ValueError, and changes nothing, for other names, shapes or dtypes than those.
        """
        current = self.state_dict()
        if _layout(state) != _layout(current):
            raise ValueError(f"state: expected {_layout(current)}, got {_layout(state)}")
        self._generator.set_state(state["exploration_state"].cpu())
        self._noise_state.copy_(state["noise_state"])


class _Recorder:
    """What all graphs of a policy share: a stream to record on, with one workspace of cuBLAS, and their memory.

    No graph of a policy runs while another one does, so what one leaves in their memory the next may overwrite.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()


class _ActingGraph:
    """Acting for a fixed number of rows on a GPU, recorded as a CUDA graph: one launch between two copies.

    A graph replays fixed work on fixed memory; what goes in and comes out passes through pinned memory.
    """

    def __init__(
        self,
        act: Callable[[Tensor], Tensor],
        observation: Tensor,
        generator: torch.Generator | None,
        recorder: _Recorder,
    ) -> None:
        """Record `act` for observations of this shape [n, O]. It must have run before: libraries are set up then.

        `generator` is the one that `act` draws from, if it draws from one: a replay then costs two more copies.
        """
        self._device = observation.device
        self._observation = torch.empty_like(observation)
        self._graph = torch.cuda.CUDAGraph()
        if generator is not None:
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(
            self._graph, pool=recorder.pool, stream=recorder.stream, capture_error_mode="thread_local"
        ):
            self._action = act(self._observation)
        self._host_observation = _pinned(self._observation)
        self._host_action = _pinned(self._action)

    def act(self, observation: FloatArray) -> FloatArray:
        """Map observation [n, O] to a new array of actions [n, A]."""
        self._host_observation.numpy()[:] = observation
        self._observation.copy_(self._host_observation, non_blocking=True)
        self._graph.replay()
        self._host_action.copy_(self._action, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        action: FloatArray = self._host_action.numpy().copy()
        return action


def _pinned(like: Tensor) -> Tensor:
    return torch.empty(like.shape, pin_memory=True)


def _layout(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(state.items())}


def _transposed_layers(actor: Actor) -> list[tuple[Tensor, Tensor]]:
    # Views of (weight [in, out], bias [out]) of each layer, as torch.addmm wants them.
    parameters = [parameter.detach() for parameter in actor.parameters()]
    return [(weight.t(), bias) for weight, bias in zip(parameters[::2], parameters[1::2], strict=True)]
