"""Actor, twin critics and value network: multilayer perceptrons (ReLU) over one flat buffer each.

All parameters of a network are views of one contiguous 1-D tensor, and so are their gradients. One Adam step,
one Polyak step or one copy is then a single operation on a single tensor, whatever the number of layers.
Shape letters as in `types`: B rows, O observation size, A action size, P number of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sacfast.config import Activation, SACConfig
from sacfast.memory import check_fits

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    # In place where the derivative follows from the result: a linear layer's backward does not need its output.
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "elu": nn.functional.elu_,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
}
"""What `activation` may be: each maps a hidden layer's output, which it may overwrite, to the next one's input."""


class FlatNetwork(nn.Module):
    """A network whose parameters are views of `flat`, and their gradients views of `flat_grad`.

    It lives and dies on the device and with the dtype it was built with: what would tear parameters from the
    buffer (`.to`, `.double`, `copy.deepcopy`, `zero_grad`) is refused.
    """

    flat: Tensor
    """Every parameter, in the order of `named_parameters()` [P]."""
    flat_grad: Tensor
    """Every gradient, in the same order [P]; also `flat.grad`, where an optimiser over `flat` finds it."""

    def _allocate(self, device: torch.device | str, dtype: torch.dtype, generator: torch.Generator | None) -> None:
        """Give memory to the linear layers, which a subclass has built on the meta device, and draw them.

        The draw is that of `nn.Linear`: weight and bias uniform in +-1 / sqrt(inputs). It is made in float32
        on the CPU, so that one seed gives one start on every device and for every dtype.
        """
        layers = [module for module in self.modules() if isinstance(module, nn.Linear)]
        initial = []
        for layer in layers:
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                initial.append(torch.empty(parameter.numel()).uniform_(-bound, bound, generator=generator))
        self.flat = torch.cat(initial).to(device=device, dtype=dtype)
        self._address = self.flat.data_ptr()
        self.flat_grad = torch.zeros_like(self.flat)
        self.flat.grad = self.flat_grad
        self._bind(layers)

    def _bind(self, layers: Iterable[nn.Linear]) -> None:
        offset = 0
        places = []
        for layer in layers:
            for name in ("weight", "bias"):
                shape = getattr(layer, name).shape
                end = offset + shape.numel()
                parameter = nn.Parameter(self.flat[offset:end].view(shape))
                parameter.grad = self.flat_grad[offset:end].view(shape)
                setattr(layer, name, parameter)
                places.append((layer, name, parameter, parameter.data_ptr(), shape, parameter.stride()))
                offset = end
        self._places = tuple(places)
        self._layout = tuple((module, list(module._modules.values())) for module in self.modules())
        self._leaves = tuple(self.parameters())

    def check_memory(self, name: str) -> None:
        """Raise RuntimeError, naming the network `name`, unless every parameter still lies in `flat`, where it was.

        Policies, optimisers and engines read that memory, and would not see a parameter that lies elsewhere.
        """
        if not self._is_intact():
            raise RuntimeError(
                f"{name}: expected parameters in the memory that policy, optimiser and engine read, got others in "
                "their place (from load_state_dict(assign=True), `.data = ...`, vector_to_parameters, or a new "
                "Parameter or layer); build the learner anew and write in place, by load_state_dict or copy_"
            )

    def _is_intact(self) -> bool:
        # A loop, not all(): a learner asks at every call.
        if self.flat.data_ptr() != self._address:
            return False
        for module, children in self._layout:
            if list(module._modules.values()) != children:
                return False
        for layer, key, parameter, address, shape, stride in self._places:
            if layer._parameters.get(key) is not parameter or parameter.data_ptr() != address:
                return False
            if parameter.shape != shape or parameter.stride() != stride:
                return False
        return True

    def backward(self, loss: Tensor) -> None:
        """Overwrite `flat_grad` with the gradient of the scalar `loss`.

        Only this network's gradient is computed: for parameters of other networks that `loss` runs through,
        neither the products are made nor their gradients touched.
        """
        gradients = torch.autograd.grad(loss, self._leaves)
        torch.cat([gradient.flatten() for gradient in gradients], out=self.flat_grad)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Fill `flat_grad` with zeros; ValueError for `set_to_none`, which would unbind it."""
        if set_to_none:
            raise ValueError("set_to_none: expected False (gradients are views of flat_grad), got True")
        self.flat_grad.zero_()

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise RuntimeError(f"{self._refusal()} for another device or dtype build a new one")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse: a copied parameter would have its own memory."""
        raise RuntimeError(f"{self._refusal()} for a copy build a new one and copy `flat`")

    def _refusal(self) -> str:
        return f"{type(self).__name__}: its parameters are views of one buffer and cannot be moved;"


class Actor(FlatNetwork):
    """The policy's network: mean and raw log standard deviation of the Gaussian under the tanh."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_sizes: Sequence[int] = (256, 256),
        activation: Activation = "relu",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw the parameters from `generator` (None: torch's default).

        Raises ValueError for a size below 1 and for an unknown activation.
        """
        super().__init__()
        self.activation = _activation(activation)
        self.observation_dim = _positive("observation_dim", observation_dim)
        self.action_dim = _positive("action_dim", action_dim)
        self.layers = _linear_layers([observation_dim, *hidden_sizes, 2 * action_dim])
        self._allocate(device, dtype, generator)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Map observation [..., O] to mean and log_std, each [..., A] and a view of one head [..., 2A].

        log_std is not bounded yet: that is the sampling op's `log_std_bounding`.
        """
        mean, log_std = _run(self.layers, self.activation, observation).chunk(2, dim=-1)
        return mean, log_std


class TwinCritic(FlatNetwork):
    """Two independent Q functions; their minimum counters overestimation (v1, section 4.2)."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_sizes: Sequence[int] = (256, 256),
        activation: Activation = "relu",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw q1, then q2 from `generator` (None: torch's default).

        Raises ValueError for a size below 1 and for an unknown activation.
        """
        super().__init__()
        inputs = _positive("observation_dim", observation_dim) + _positive("action_dim", action_dim)
        self.q1 = _ScalarFunction(inputs, hidden_sizes, activation)
        self.q2 = _ScalarFunction(inputs, hidden_sizes, activation)
        self._allocate(device, dtype, generator)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Map observation [B, O] and action [B, A] to (q1, q2), each [B]."""
        pair = torch.cat((observation, action), dim=-1)
        return self.q1(pair), self.q2(pair)


class ValueNetwork(FlatNetwork):
    """The state value V of v1."""

    def __init__(
        self,
        observation_dim: int,
        hidden_sizes: Sequence[int] = (256, 256),
        activation: Activation = "relu",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw the parameters from `generator` (None: torch's default).

        Raises ValueError for a size below 1 and for an unknown activation.
        """
        super().__init__()
        self._activation = _activation(activation)
        self.layers = _linear_layers([_positive("observation_dim", observation_dim), *hidden_sizes, 1])
        self._allocate(device, dtype, generator)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observation [B, O] to V [B]."""
        return _run(self.layers, self._activation, observation).squeeze(-1)


def build_networks(
    observation_dim: int,
    action_dim: int,
    config: SACConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> dict[str, FlatNetwork]:
    """Draw the networks of one agent by name: actor, critic and target_critic; v1: actor, critic, value, target_value.

    A target starts as a copy of what it follows. `check_learner_fits` comes first: here nothing is refused.
    """
    built = (config.hidden_sizes, config.activation, device, dtype, generator)
    networks: dict[str, FlatNetwork] = {
        "actor": Actor(observation_dim, action_dim, *built),
        "critic": TwinCritic(observation_dim, action_dim, *built),
    }
    if config.value_network:
        networks["value"] = ValueNetwork(observation_dim, *built)
        networks["target_value"] = ValueNetwork(observation_dim, *built)
        networks["target_value"].flat.copy_(networks["value"].flat)
    else:
        networks["target_critic"] = TwinCritic(observation_dim, action_dim, *built)
        networks["target_critic"].flat.copy_(networks["critic"].flat)
    return networks


def network_bytes(observation_dim: int, action_dim: int, config: SACConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Return what `build_networks` takes, with the gradients, and the part of it that an optimiser steps."""

    def parameters(inputs: int, outputs: int) -> int:
        return sum((i + 1) * o for i, o in pairwise([inputs, *config.hidden_sizes, outputs]))

    critics = 2 * parameters(observation_dim + action_dim, 1)
    value = parameters(observation_dim, 1) if config.value_network else 0
    online = parameters(observation_dim, 2 * action_dim) + critics + value
    return 2 * (online + (value or critics)) * dtype.itemsize, online * dtype.itemsize


def check_learner_fits(
    observation_dim: int, action_dim: int, config: SACConfig, needed: int, device: torch.device
) -> None:
    """Raise ValueError when a learner of these sizes, which takes `needed` bytes, is too much for the device."""
    what = f"hidden_sizes: {config.hidden_sizes} with {observation_dim} observations, {action_dim} actions and "
    check_fits(what + f"batch_size {config.batch_size}", needed, device)


class _ScalarFunction(nn.Module):
    # One of the twins: a module of its own so that parameters are named q1.layers.0.weight.

    def __init__(self, inputs: int, hidden_sizes: Sequence[int], activation: Activation) -> None:
        super().__init__()
        self._activation = _activation(activation)
        self.layers = _linear_layers([inputs, *hidden_sizes, 1])

    def forward(self, inputs: Tensor) -> Tensor:
        return _run(self.layers, self._activation, inputs).squeeze(-1)


def _linear_layers(sizes: Sequence[int]) -> nn.ModuleList:
    for size in sizes[1:-1]:
        _positive("hidden_sizes", size)
    return nn.ModuleList(nn.Linear(inputs, outputs, device="meta") for inputs, outputs in pairwise(sizes))


def _run(layers: Iterable[nn.Module], activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    *hidden, head = layers
    for layer in hidden:
        x = activation(layer(x))
    output: Tensor = head(x)
    return output


def _activation(name: Activation) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(map(repr, ACTIVATIONS))}, got {name!r}")
    return ACTIVATIONS[name]


def _positive(name: str, size: int) -> int:
    if size < 1:
        raise ValueError(f"{name}: expected an int >= 1, got {size!r}")
    return size
