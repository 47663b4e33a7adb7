"""TorchRL with sacfast's fused sampling: `FusedTanhNormal` takes the place of `TanhNormal`.

    ProbabilisticActor(..., distribution_class=FusedTanhNormal)

TorchRL's `SACLoss` asks the distribution for a sample and its log-probability together; that call is one fused op
here. Whatever else is asked of the distribution is TorchRL's.

    pip install 'sacfast[examples]'
    python examples/torchrl_tanh_normal.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tyro
from gain import print_gain
from torch import Tensor, nn

from sacfast import ops

try:
    from tensordict import TensorDict
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl.envs import GymEnv
    from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
    from torchrl.objectives import SACLoss, SoftUpdate
except ImportError as error:
    raise SystemExit(f"{error}: pip install 'sacfast[examples]'") from error


@dataclass
class Args:
    """Collect with TorchRL, make SAC updates with the fused distribution, and measure it beside TorchRL's own."""

    env_id: str = "Pendulum-v1"
    """A Gymnasium task."""
    total_timesteps: int = 1_000
    """Transitions to collect with the first policy."""
    updates: int = 100
    """Gradient updates on them."""
    batch_size: int = 256
    """Transitions in a minibatch."""
    seed: int = 1
    """Seed of everything random."""
    threads: int = 1
    """Threads of torch."""
    rounds: int = 50
    """Rounds of the measurement after the updates; 0: none."""


class FusedTanhNormal(TanhNormal):
    """`TanhNormal` whose sample and log-probability come out of one fused pass, forward and backward."""

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Return reparameterised actions [..., A] in [low, high] and their log-probabilities [...]."""
        if sample_shape or self._event_dims != 1:
            return super().rsample_and_log_prob(sample_shape)
        if not (self.non_trivial_min or self.non_trivial_max):
            return ops.tanh_gaussian_rsample(self.loc, self.scale.log())
        half = ((self.high - self.low) / 2).to(self.loc.dtype).expand(self.loc.shape[-1:])
        action, log_prob = ops.tanh_gaussian_rsample(self.loc, self.scale.log(), action_scale=half)
        return action + (self.high + self.low) / 2, log_prob


def make_loss(env: GymEnv, distribution: type[TanhNormal]) -> SACLoss:
    """Build TorchRL's SAC for a task, with 256-256 networks."""
    action = env.action_spec
    net = MLP(in_features=env.observation_spec["observation"].shape[-1], out_features=2 * action.shape[-1],
              num_cells=[256, 256], activation_class=nn.ReLU)  # fmt: skip
    body = TensorDictModule(nn.Sequential(net, NormalParamExtractor()), ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(
        body,
        in_keys=["loc", "scale"],
        spec=action,
        distribution_class=distribution,
        distribution_kwargs={"low": action.space.low, "high": action.space.high},
    )
    inputs = net[0].in_features + action.shape[-1]
    critic_net = MLP(in_features=inputs, out_features=1, num_cells=[256, 256], activation_class=nn.ReLU)
    return SACLoss(actor, ValueOperator(critic_net, in_keys=["observation", "action"]))


def update(loss: SACLoss, optimizer: torch.optim.Optimizer, targets: SoftUpdate, batch: TensorDict) -> None:
    """Step critics, actor and temperature, then the targets."""
    values = loss(batch)
    optimizer.zero_grad()
    (values["loss_actor"] + values["loss_qvalue"] + values["loss_alpha"]).backward()
    optimizer.step()
    targets.step()


def main(arguments: Sequence[str] | None = None) -> None:
    """Collect, update and measure."""
    args = tyro.cli(Args, args=arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    env = GymEnv(args.env_id)
    env.set_seed(args.seed)
    trainers = {}
    for distribution in (FusedTanhNormal, TanhNormal):
        loss = make_loss(env, distribution)
        trainers[distribution] = loss, torch.optim.Adam(loss.parameters(), lr=3e-4), SoftUpdate(loss, tau=0.005)
    loss, *_ = trainers[FusedTanhNormal]
    data = env.rollout(args.total_timesteps, loss.actor_network, break_when_any_done=False).detach()

    def batch() -> TensorDict:
        return data[torch.randint(len(data), (args.batch_size,))]

    for _ in range(args.updates):
        update(*trainers[FusedTanhNormal], batch())
    print(f"{args.env_id}: {len(data)} transitions, {args.updates} gradient updates, alpha {loss._alpha.item():.4f}")

    if args.rounds:
        loc = torch.randn(args.batch_size, 6, requires_grad=True)
        scale = torch.rand(args.batch_size, 6).add_(0.1).requires_grad_()

        def sample(distribution: type[TanhNormal]) -> None:
            action, log_prob = distribution(loc, scale).rsample_and_log_prob()
            torch.autograd.backward(action.sum() + log_prob.sum())

        fixed = batch()
        fused, plain = (trainers[name] for name in (FusedTanhNormal, TanhNormal))
        samples = {"FusedTanhNormal": lambda: sample(FusedTanhNormal), "TanhNormal": lambda: sample(TanhNormal)}
        updates = {"FusedTanhNormal": lambda: update(*fused, fixed), "TanhNormal": lambda: update(*plain, fixed)}
        print_gain(f"distribution, sample and backward, [{args.batch_size}, 6]", samples, args.rounds)
        print_gain("one whole gradient update", updates, args.rounds)


if __name__ == "__main__":
    main()
