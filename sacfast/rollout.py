"""The training environments from one opening to the next, with the actions that bring them back to where they are.

Environments cannot be saved. But opened with the same seeds and sent the same actions they come to the same state, bit
for bit, if they are deterministic. So a checkpoint holds the actions sent since the opening, and a resumed run steps
fresh environments with them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from tqdm import tqdm

from sacfast import output
from sacfast.envs import EnvSpec, StepResult, VectorEnv
from sacfast.types import FloatArray

_LOG = output.logger(__name__)

BAR_AFTER_SECONDS = 2.0
"""How long `Rollout.restep` works before it shows a progress bar."""


class Rollout:
    """Environments that were opened and reset, and each step that they have made since.

    Attributes:
        observation: [n, O], the rows that await an action; while a step is under way, those that the action was for.
        steps: steps received.
        is_stepping: whether an action was sent whose step is not received yet.
    """

    def __init__(self, env: VectorEnv, keeps_actions: bool) -> None:
        """Reset `env`, which this object then owns.

        `keeps_actions`: whether every action is kept, which takes 4 * n * A bytes a step. Those of asynchronous
        environments never are: which of them answer first is chance.
        """
        self.observation, _ = env.reset()
        self.steps = 0
        self.is_stepping = False
        self._env = env
        self._actions = bytearray() if keeps_actions and env.batch_size == env.num_envs else None

    @property
    def is_repeatable(self) -> bool:
        """Whether `state_dict` can be taken."""
        return self._actions is not None

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was sent since the reset."""
        return not (self.steps or self.is_stepping)

    def send(self, action: FloatArray) -> None:
        """Start a step with `action` [n, A]; raises as `VectorEnv.send`."""
        self._env.send(action)
        self.is_stepping = True
        if self._actions is not None:
            self._actions += action.tobytes()

    def recv(self) -> StepResult:
        """Wait for the step and return it; raises as `VectorEnv.recv`."""
        result = self._env.recv()
        self.observation = result.observation
        self.steps += 1
        self.is_stepping = False
        return result

    def close(self) -> None:
        """Free the environments."""
        self._env.close()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `restep` needs, and what it compares, by name.

        `actions` [S, n, A] float32, all that were sent; `steps` [] int64, how many were received: S, or S - 1 while
        a step is under way; `observation` [n, O] float32; `return` [n] float64 and `length` [n] int64 of the running
        episodes.
        """
        assert self._actions is not None, "the actions were not kept"
        shape = (-1, self._env.num_envs, self._env.spec.action_dim)
        actions = np.frombuffer(self._actions, np.float32).reshape(shape).copy()
        return {"actions": torch.from_numpy(actions), "steps": torch.tensor(self.steps), **self._comparable_state()}

    def restep(self, state: Mapping[str, torch.Tensor], show_bar: bool = False) -> bool:
        """Send the actions of a `state_dict`, right after the reset; return whether that has led to its state.

        What the steps yield is dropped. After False the environments are of no more use: they do not repeat
        themselves, or one has failed, which a warning says. `show_bar`: whether a progress bar is shown, if it takes
        long.

        Raises:
            ValueError: an entry is missing, unknown, or of another shape or dtype.
        """
        check_state(state, self._env.num_envs, self._env.spec)
        actions, steps = state["actions"].numpy(), int(state["steps"])
        _LOG.info("%s: stepping the environments to where they were: %d steps", self._env.spec.env_id, steps)
        try:
            for action in tqdm(
                actions[:steps],
                "environments",
                unit="step",
                delay=BAR_AFTER_SECONDS,
                disable=not show_bar,
                file=output.progress_stream(),
            ):
                self.send(action)
                self.recv()
            reached = self._comparable_state()
            if not all(torch.equal(reached[name], state[name]) for name in reached):
                return False
            for action in actions[steps:]:
                self.send(action)
        except Exception as error:  # whatever an environment raises: the run goes on with fresh ones
            _LOG.warning("an environment failed: %s", error)
            return False
        return True

    def _comparable_state(self) -> dict[str, torch.Tensor]:
        """Return what shows where the environments are."""
        return_, length = self._env.running_episodes()
        return {
            "observation": torch.from_numpy(self.observation),
            "return": torch.from_numpy(return_),
            "length": torch.from_numpy(length),
        }


def check_state(state: Mapping[str, torch.Tensor], num_envs: int, spec: EnvSpec) -> None:
    """Raise ValueError unless a state has the form of those that `Rollout.state_dict` of such environments returns."""
    sent = state["actions"].shape[:1] if "actions" in state else (0,)
    like = {
        "actions": torch.empty((*sent, num_envs, spec.action_dim), device="meta"),
        "steps": torch.tensor(0),
        "observation": torch.empty((num_envs, spec.observation_dim)),
        "return": torch.empty(num_envs, dtype=torch.float64),
        "length": torch.empty(num_envs, dtype=torch.int64),
    }
    expected, found = (
        {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(each.items())}
        for each in (like, state)
    )
    if found != expected:
        raise ValueError(f"environments: expected {expected}, got {found}")
    if not max(0, len(state["actions"]) - 1) <= int(state["steps"]) <= len(state["actions"]):
        raise ValueError(
            f"environments: expected {len(state['actions'])} actions to be of as many steps, or one fewer, "
            f"got {int(state['steps'])}"
        )
