import copy
from typing import get_args

import pytest
import torch
from torch import nn

from sacfast.config import Activation
from sacfast.networks import ACTIVATIONS, Actor, TwinCritic, ValueNetwork

O, A, B = 5, 3, 7  # noqa: E741 # the project's shape letters
HIDDEN = [(), (8,), (16, 8), (8, 8, 8)]
MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU}


def build(kind, hidden_sizes=(8, 16), seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    sizes = (O,) if kind is ValueNetwork else (O, A)
    return kind(*sizes, hidden_sizes, generator=generator, **options)


def inputs(kind, dtype=torch.float32, rows=B):
    generator = torch.Generator().manual_seed(1)
    observation = torch.randn(rows, O, generator=generator).to(dtype)
    action = torch.rand(rows, A, generator=generator).to(dtype)
    return (observation, action) if kind is TwinCritic else (observation,)


def plain_mlp(state, prefix, activation="relu"):
    """The same network as an `nn.Sequential` with copied parameters."""
    layers = []
    while f"{prefix}layers.{len(layers)}.weight" in state:
        weight = state[f"{prefix}layers.{len(layers)}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(state[f"{prefix}layers.{len(layers)}.bias"])
        layers.append(layer)
    chain = [module for layer in layers for module in (layer, MODULES[activation]())]
    return nn.Sequential(*chain[:-1])


def assert_flat(network):
    """Parameters tile `flat` in order without a gap, and gradients tile `flat_grad` alike."""
    offset = 0
    for name, parameter in network.named_parameters():
        for tensor, flat in ((parameter, network.flat), (parameter.grad, network.flat_grad)):
            assert tensor.is_contiguous(), name
            assert tensor.data_ptr() == flat.data_ptr() + offset * flat.element_size(), name
        offset += parameter.numel()
    assert network.flat.shape == network.flat_grad.shape == (offset,)
    assert network.flat.is_contiguous()
    assert network.flat.grad is network.flat_grad


ALL = pytest.mark.parametrize("kind", [Actor, TwinCritic, ValueNetwork])


@ALL
@pytest.mark.parametrize("hidden_sizes", HIDDEN, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parameters_and_gradients_are_views_of_one_buffer(kind, hidden_sizes, dtype):
    network = build(kind, hidden_sizes, dtype=dtype)
    assert_flat(network)
    assert network.flat.dtype == dtype
    loss = sum(output.square().sum() for output in torch.stack(list(network(*inputs(kind, dtype)))))
    network.backward(loss)
    assert_flat(network)
    assert network.flat_grad.count_nonzero() > 0


@ALL
@pytest.mark.parametrize(
    ("hidden_sizes", "activation"),
    [*((sizes, "relu") for sizes in HIDDEN), *(((16, 8), name) for name in ACTIVATIONS if name != "relu")],
    ids=str,
)
def test_forward_equals_a_plain_mlp(kind, hidden_sizes, activation):
    network = build(kind, hidden_sizes, activation=activation, dtype=torch.float64)
    arguments = inputs(kind, torch.float64)
    state = network.state_dict()
    if kind is TwinCritic:
        pair = torch.cat(arguments, dim=1)
        expected = [plain_mlp(state, prefix, activation)(pair).squeeze(1) for prefix in ("q1.", "q2.")]
    elif kind is Actor:
        expected = plain_mlp(state, "", activation)(*arguments).split(A, dim=1)
    else:
        expected = [plain_mlp(state, "", activation)(*arguments).squeeze(1)]
    got = network(*arguments)
    got = [got] if kind is ValueNetwork else got
    for left, right in zip(got, expected, strict=True):
        assert left.shape == ((B, A) if kind is Actor else (B,))
        torch.testing.assert_close(left, right)


@ALL
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_equals_that_of_a_plain_mlp(kind, activation):
    """What an activation overwrites is nothing that the derivative needs."""
    network = build(kind, activation=activation, dtype=torch.float64)
    arguments = inputs(kind, torch.float64)
    network.backward(torch.stack(list(network(*arguments))).square().sum())
    prefixes = ("q1.", "q2.") if kind is TwinCritic else ("",)
    twins = [plain_mlp(network.state_dict(), prefix, activation) for prefix in prefixes]
    sum(twin(torch.cat(arguments, dim=1)).square().sum() for twin in twins).backward()
    expected = torch.cat([parameter.grad.flatten() for twin in twins for parameter in twin.parameters()])
    torch.testing.assert_close(network.flat_grad, expected)


def test_every_activation_of_the_settings_is_there():
    assert tuple(ACTIVATIONS) == get_args(Activation) == tuple(MODULES)


@ALL
def test_an_unknown_activation_is_refused_by_name(kind):
    with pytest.raises(ValueError, match=r"activation: expected one of 'relu', .*, got 'swish'"):
        build(kind, activation="swish")


@ALL
def test_backward_overwrites_with_what_autograd_accumulates(kind):
    network = build(kind, dtype=torch.float64)
    arguments = inputs(kind, torch.float64)

    def loss():
        return torch.stack(list(network(*arguments))).square().sum()

    network.flat_grad.fill_(100.0)  # what an earlier step left must not count
    network.backward(loss())
    written = network.flat_grad.clone()
    network.zero_grad()
    assert network.flat_grad.count_nonzero() == 0
    loss().backward()
    torch.testing.assert_close(network.flat_grad, written)
    assert_flat(network)


def test_backward_leaves_other_networks_alone():
    actor, critic = build(Actor), build(TwinCritic)
    (observation,) = inputs(Actor)
    mean, _ = actor(observation)
    q1, q2 = critic(observation, mean)
    critic.flat_grad.fill_(100.0)
    actor.backward(torch.minimum(q1, q2).mean())
    assert actor.flat_grad.count_nonzero() > 0
    assert (critic.flat_grad == 100.0).all()


def test_a_step_on_the_buffer_is_a_step_of_every_parameter():
    network = build(TwinCritic)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    network.flat.add_(1.0)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] + 1.0)


def test_parameter_names():
    layers = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert [name for name, _ in build(Actor, (8,)).named_parameters()] == layers
    assert [name for name, _ in build(ValueNetwork, (8,)).named_parameters()] == layers
    twins = [f"{twin}.{name}" for twin in ("q1", "q2") for name in layers]
    assert [name for name, _ in build(TwinCritic, (8,)).named_parameters()] == twins


@ALL
def test_initial_parameters_depend_on_the_seed_only(kind):
    first = build(kind, seed=3)
    torch.manual_seed(99)
    torch.testing.assert_close(build(kind, seed=3).flat, first.flat, rtol=0, atol=0)
    torch.testing.assert_close(build(kind, seed=3, dtype=torch.float64).flat.float(), first.flat, rtol=0, atol=0)
    assert not torch.equal(build(kind, seed=4).flat, first.flat)


def test_initial_parameters_are_distributed_as_those_of_linear_layers():
    network = Actor(64, 4, (400,), generator=torch.Generator().manual_seed(0))
    for layer in network.layers:
        bound = layer.in_features**-0.5
        for parameter in (layer.weight.detach(), layer.bias.detach()):
            assert parameter.abs().max() <= bound
        weight = layer.weight.detach()
        # 3,200 draws at least: the standard error of a uniform's mean is 0.010 bounds, of its standard
        # deviation 0.005; the margins are five of them.
        assert abs(weight.mean() / bound) < 0.05
        assert abs(weight.std() / bound - 3**-0.5) < 0.025


def test_the_twins_start_apart():
    critic = build(TwinCritic)
    half = len(critic.flat) // 2
    assert not torch.equal(critic.flat[:half], critic.flat[half:])


def test_actor_takes_any_leading_dimensions():
    actor = build(Actor)
    mean, log_std = actor(torch.zeros(2, 4, O))
    assert mean.shape == log_std.shape == (2, 4, A)
    mean, log_std = actor(torch.zeros(O))
    assert mean.shape == log_std.shape == (A,)


@ALL
def test_moving_and_copying_are_refused(kind):
    network = build(kind)
    for move in (network.double, lambda: network.to("cpu"), lambda: copy.deepcopy(network)):
        with pytest.raises(RuntimeError, match=f"{kind.__name__}: its parameters are views of one buffer"):
            move()
    with pytest.raises(ValueError, match="set_to_none: expected False"):
        network.zero_grad(set_to_none=True)
    assert_flat(network)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0, A, (8,)), "observation_dim"), ((O, 0, (8,)), "action_dim"), ((O, A, (8, 0)), "hidden_sizes")],
)
@pytest.mark.parametrize("kind", [Actor, TwinCritic])
def test_sizes_below_one_are_refused(kind, arguments, name):
    with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, got 0"):
        kind(*arguments)
