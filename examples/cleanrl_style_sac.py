"""Soft Actor-Critic in one file, in the style of CleanRL, with the three fused ops of sacfast.

`PlainOps` is what such files usually write, `FusedOps` the same in sacfast's ops: exchanging one for the other is
all there is to do.

    python examples/cleanrl_style_sac.py --env-id Pendulum-v1 --total-timesteps 10000
"""

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from gain import print_gain
from torch import Tensor, nn
from torch.nn import functional as F

from sacfast import ReplayBuffer, ops
from sacfast.types import Batch

LOG_STD_BOUNDS = (-5.0, 2.0)


@dataclass
class Args:
    """Train SAC on a Gymnasium task, then measure an update with fused ops beside one without."""

    env_id: str = "Pendulum-v1"
    """A Gymnasium task with float observations and a bounded continuous action."""
    total_timesteps: int = 10_000
    """Transitions to collect."""
    learning_starts: int = 1_000
    """Transitions of uniformly random actions before the first update."""
    fused: bool = True
    """Whether to train with the fused ops, or without."""
    seed: int = 1
    """Seed of everything random."""
    batch_size: int = 256
    """Transitions in a minibatch."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """Step of the target networks."""
    learning_rate: float = 3e-4
    """Of every Adam."""
    threads: int = 1
    """Threads of torch."""
    rounds: int = 50
    """Rounds of the measurement after the training; 0: none."""


class PlainOps:
    """What a single-file SAC usually writes."""

    @staticmethod
    def sample(mean: Tensor, log_std: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions [B, A] and their log-probabilities [B]."""
        low, high = LOG_STD_BOUNDS
        normal = torch.distributions.Normal(mean, (low + 0.5 * (high - low) * (torch.tanh(log_std) + 1)).exp())
        pre_tanh = normal.rsample()
        squashed = torch.tanh(pre_tanh)
        log_prob = normal.log_prob(pre_tanh) - torch.log(scale * (1 - squashed**2) + 1e-6)
        return squashed * scale + bias, log_prob.sum(1)

    @staticmethod
    def target(batch: Batch, q1: Tensor, q2: Tensor, log_prob: Tensor, alpha: Tensor, gamma: float) -> Tensor:
        """Return the soft Bellman target [B]."""
        return batch.reward + (1 - batch.terminated) * gamma * (torch.min(q1, q2) - alpha * log_prob)

    @staticmethod
    def polyak(target: nn.Module, online: nn.Module, tau: float) -> None:
        """Move the target network a little."""
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.data.copy_(tau * new.data + (1 - tau) * old.data)


class FusedOps:
    """The same by sacfast: one op each, and the log-probability exact where 1e-6 above cuts it."""

    @staticmethod
    def sample(mean: Tensor, log_std: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions [B, A] and their log-probabilities [B]."""
        action, log_prob = ops.tanh_gaussian_rsample(
            mean, log_std, log_std_bounding="tanh", log_std_bounds=LOG_STD_BOUNDS, action_scale=scale
        )
        return action + bias, log_prob

    @staticmethod
    def target(batch: Batch, q1: Tensor, q2: Tensor, log_prob: Tensor, alpha: Tensor, gamma: float) -> Tensor:
        """Return the soft Bellman target [B]."""
        return ops.twin_q_target(batch.reward, batch.terminated, q1, q2, log_prob, alpha, gamma)

    @staticmethod
    def polyak(target: nn.Module, online: nn.Module, tau: float) -> None:
        """Move the target network a little."""
        ops.polyak_update_(target.parameters(), online.parameters(), tau)


class Actor(nn.Module):
    """Mean and raw log standard deviation of the Gaussian under the tanh."""

    def __init__(self, observation_dim: int, space: gym.spaces.Box) -> None:
        """Draw the parameters; keep the bounds of the actions."""
        super().__init__()
        self.body = mlp(observation_dim, 256)
        self.mean = nn.Linear(256, space.shape[0])
        self.log_std = nn.Linear(256, space.shape[0])
        self.register_buffer("scale", torch.as_tensor((space.high - space.low) / 2, dtype=torch.float32))
        self.register_buffer("bias", torch.as_tensor((space.high + space.low) / 2, dtype=torch.float32))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, O] to mean and raw log_std [B, A]."""
        hidden = F.relu(self.body(observation))
        return self.mean(hidden), self.log_std(hidden)

    def act(self, observation: Tensor, kit: type[PlainOps] | type[FusedOps]) -> tuple[Tensor, Tensor]:
        """Return actions [B, A] in the task's units and their log-probabilities [B]."""
        return kit.sample(*self(observation), self.scale, self.bias)


class TwinCritic(nn.Module):
    """Two Q functions."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        """Draw the parameters."""
        super().__init__()
        pair = observation_dim + action_dim
        self.q1, self.q2 = (nn.Sequential(mlp(pair, 256), nn.ReLU(), nn.Linear(256, 1)) for _ in range(2))

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, O] and [B, A] to two [B]."""
        pair = torch.cat([observation, action], 1)
        return self.q1(pair).squeeze(1), self.q2(pair).squeeze(1)


def mlp(inputs: int, width: int) -> nn.Sequential:
    """Two layers; the activation after the second is the caller's."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))


class Agent:
    """Networks, optimisers and the update."""

    def __init__(self, observation_dim: int, space: gym.spaces.Box, args: Args) -> None:
        """Draw everything."""
        self.args = args
        self.actor = Actor(observation_dim, space)
        self.critic = TwinCritic(observation_dim, space.shape[0])
        self.target_critic = copy.deepcopy(self.critic)
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.target_entropy = -float(space.shape[0])
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=args.learning_rate)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=args.learning_rate)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=args.learning_rate)
        self.updates = 0

    def update(self, batch: Batch, kit: type[PlainOps] | type[FusedOps]) -> None:
        """Step the critics, the actor, the temperature and the targets once."""
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            next_action, next_log_prob = self.actor.act(batch.next_observation, kit)
            next_q1, next_q2 = self.target_critic(batch.next_observation, next_action)
            target = kit.target(batch, next_q1, next_q2, next_log_prob, alpha, self.args.gamma)
        q1, q2 = self.critic(batch.observation, batch.action)
        step(self.critic_optimizer, F.mse_loss(q1, target) + F.mse_loss(q2, target))

        action, log_prob = self.actor.act(batch.observation, kit)
        step(self.actor_optimizer, (alpha * log_prob - torch.min(*self.critic(batch.observation, action))).mean())
        step(self.alpha_optimizer, -self.log_alpha * (log_prob.detach() + self.target_entropy).mean())
        kit.polyak(self.target_critic, self.critic, self.args.tau)
        self.updates += 1


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Walk down a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure."""
    args = tyro.cli(Args, args=arguments)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    kit = FusedOps if args.fused else PlainOps

    # sacfast's replay buffer takes actions in [-1, 1] alone, as those of its learners are.
    env = gym.wrappers.RescaleAction(gym.make(args.env_id), np.float32(-1), np.float32(1))
    env.action_space.seed(args.seed)
    observation_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    agent = Agent(observation_dim, env.action_space, args)
    replay = ReplayBuffer(args.total_timesteps, observation_dim, action_dim, seed=args.seed)

    returns, episode_return = deque(maxlen=10), 0.0
    observation, _ = env.reset(seed=args.seed)
    for timestep in range(args.total_timesteps):
        if timestep < args.learning_starts:
            action = env.action_space.sample()
        else:
            with torch.no_grad():
                action = agent.actor.act(torch.as_tensor(observation, dtype=torch.float32)[None], kit)[0][0].numpy()
        next_observation, reward, terminated, truncated, _ = env.step(action)
        fields = observation, action, reward, next_observation
        replay.add(*(np.asarray(field, np.float32)[None] for field in fields), np.asarray([terminated]))
        observation, episode_return = next_observation, episode_return + float(reward)
        if terminated or truncated:  # a time limit is stored as no termination: it bootstraps
            returns.append(episode_return)
            observation, episode_return = env.reset()[0], 0.0
        if timestep >= args.learning_starts:
            agent.update(replay.sample(args.batch_size), kit)
    env.close()
    recent = f"{np.mean(returns):.1f}" if returns else "none"
    print(
        f"{args.env_id}: {args.total_timesteps} transitions, {agent.updates} gradient updates, "
        f"mean return of the last {len(returns)} episodes {recent}"
    )

    if args.rounds:
        measure(agent, replay.sample(args.batch_size), args)


def measure(agent: Agent, batch: Batch, args: Args) -> None:
    """Print what is gained on the exchanged lines alone, and on a whole update with its matrix products."""
    twin = copy.deepcopy(agent)
    with torch.no_grad():
        heads = [head.requires_grad_() for head in agent.actor(batch.observation)]

    def exchanged_lines(kit: type[PlainOps] | type[FusedOps]) -> None:
        action, log_prob = kit.sample(*heads, agent.actor.scale, agent.actor.bias)
        torch.autograd.backward(action.sum() + log_prob.sum())
        kit.target(batch, batch.reward, batch.reward, log_prob.detach(), agent.log_alpha.detach(), args.gamma)
        kit.polyak(agent.target_critic, agent.critic, args.tau)

    lines = {"fused": lambda: exchanged_lines(FusedOps), "plain": lambda: exchanged_lines(PlainOps)}
    update = {"fused": lambda: agent.update(batch, FusedOps), "plain": lambda: twin.update(batch, PlainOps)}
    print_gain("sample, its backward, target and Polyak", lines, args.rounds)
    print_gain("one whole gradient update", update, args.rounds)


if __name__ == "__main__":
    main()
