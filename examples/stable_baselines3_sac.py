"""Stable-Baselines3's SAC with sacfast's fused ops, in two steps.

1. `FusedPolicy`: a policy class that samples by the fused op. It swaps in by name, and everything else of
   Stable-Baselines3 stays as it is: `SAC(FusedPolicy, env)`.
2. `FusedSAC`: its `train` also takes the target and the Polyak average from sacfast.

    pip install 'sacfast[examples]'
    python examples/stable_baselines3_sac.py --env-id Pendulum-v1 --total-timesteps 5000
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from gain import print_gain
from torch import Tensor
from torch.nn import functional as F

from sacfast import ops

try:
    from stable_baselines3 import SAC
    from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.sac.policies import Actor, SACPolicy
except ImportError as error:
    raise SystemExit(f"{error}: pip install 'sacfast[examples]'") from error


@dataclass
class Args:
    """Train Stable-Baselines3's SAC with fused ops, evaluate it, and measure its updates beside the plain ones."""

    env_id: str = "Pendulum-v1"
    """A Gymnasium task."""
    total_timesteps: int = 5_000
    """Transitions to collect."""
    learning_starts: int = 100
    """Transitions of random actions before the first update."""
    whole: bool = True
    """Whether target and Polyak average are fused too (`FusedSAC`), or the sampling alone."""
    episodes: int = 5
    """Episodes of the evaluation."""
    seed: int = 1
    """Seed of everything random."""
    threads: int = 1
    """Threads of torch."""
    rounds: int = 50
    """Rounds of the measurement after the training; 0: none."""


class FusedSquashedGaussian(SquashedDiagGaussianDistribution):
    """Action and log-probability in one pass; without the 1e-6 inside the logarithm."""

    def log_prob_from_params(self, mean_actions: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """Sample: actions [B, A] and log-probabilities [B]. The actor has bounded `log_std` already."""
        return ops.tanh_gaussian_rsample(mean_actions, log_std)


class FusedPolicy(SACPolicy):
    """`MlpPolicy` with the fused distribution. For generalised state-dependent exploration there is none."""

    def make_actor(self, *args: Any, **kwargs: Any) -> Actor:
        """Build the actor as always, then exchange its distribution."""
        actor = super().make_actor(*args, **kwargs)
        if actor.use_sde:
            raise ValueError("use_sde: expected False with FusedPolicy, got True")
        actor.action_dist = FusedSquashedGaussian(actor.action_dist.action_dim)
        return actor


class FusedSAC(SAC):
    """Stable-Baselines3's updates in their own order (temperature, critics, actor, targets), with all three ops."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Make the updates; the twin-Q op is for two critics, as is the default."""
        self.policy.set_training_mode(True)
        learned = [] if self.ent_coef_optimizer is None else [self.ent_coef_optimizer]
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer, *learned])
        losses: dict[str, list[float]] = {"actor_loss": [], "critic_loss": [], "ent_coef": []}
        for gradient_step in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            action, log_prob = self.actor.action_log_prob(batch.observations)
            alpha = self._step_temperature(log_prob)

            with torch.no_grad():
                next_action, next_log_prob = self.actor.action_log_prob(batch.next_observations)
                next_q1, next_q2 = self.critic_target(batch.next_observations, next_action)
                gamma = self.gamma if batch.discounts is None else batch.discounts
                next_log_prob = next_log_prob.unsqueeze(1)
                target = ops.twin_q_target(batch.rewards, batch.dones, next_q1, next_q2, next_log_prob, alpha, gamma)
            current = self.critic(batch.observations, batch.actions)
            critic_loss = 0.5 * sum(F.mse_loss(q, target) for q in current)
            _step(self.critic.optimizer, critic_loss)

            smaller_q = torch.min(*self.critic(batch.observations, action)).squeeze(1)
            actor_loss = (alpha * log_prob - smaller_q).mean()
            _step(self.actor.optimizer, actor_loss)

            if gradient_step % self.target_update_interval == 0:
                ops.polyak_update_(self.critic_target.parameters(), self.critic.parameters(), self.tau)
                ops.polyak_update_(self.batch_norm_stats_target, self.batch_norm_stats, 1.0)
            self._n_updates += 1
            for name, value in zip(losses, (actor_loss, critic_loss, alpha), strict=True):
                losses[name].append(value.item())
        for name, values in losses.items():
            self.logger.record(f"train/{name}", np.mean(values))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _step_temperature(self, log_prob: Tensor) -> Tensor:
        """Return the temperature as it was before its step."""
        if self.ent_coef_optimizer is None:
            return self.ent_coef_tensor
        alpha = self.log_ent_coef.detach().exp()
        _step(self.ent_coef_optimizer, -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean())
        return alpha


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def updates_of(model: SAC, algorithm: type[SAC], policy: str | type[SACPolicy]) -> Callable[[], None]:
    """Return one gradient update of another model, on the transitions that `model` has collected."""
    other = algorithm(policy, model.env, batch_size=model.batch_size, device="cpu", buffer_size=1)
    other.set_logger(Logger(None, []))
    other.replay_buffer = model.replay_buffer
    return lambda: other.train(1, model.batch_size)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and measure."""
    args = tyro.cli(Args, args=arguments)
    torch.set_num_threads(args.threads)
    algorithm = FusedSAC if args.whole else SAC
    model = algorithm(FusedPolicy, args.env_id, learning_starts=args.learning_starts, seed=args.seed, device="cpu")
    model.learn(args.total_timesteps)
    mean, std = evaluate_policy(model, model.get_env(), args.episodes)
    print(
        f"{args.env_id}: {model.num_timesteps} transitions, {model._n_updates} gradient updates, "
        f"return {mean:.1f} +- {std:.1f} over {args.episodes} episodes"
    )
    if args.rounds:
        plain = updates_of(model, SAC, "MlpPolicy")
        for algorithm in (SAC, FusedSAC):
            name = f"{algorithm.__name__}(FusedPolicy)"
            fused = updates_of(model, algorithm, FusedPolicy)
            print_gain("one whole gradient update", {name: fused, "SAC('MlpPolicy')": plain}, args.rounds)


if __name__ == "__main__":
    main()
