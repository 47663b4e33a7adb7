"""Vectorised environments: of EnvPool or Gymnasium, by one protocol."""

from sacfast.envs.envpool import EnvPoolVectorEnv, import_envpool
from sacfast.envs.gymnasium import GymnasiumVectorEnv, ImageArray
from sacfast.envs.make import is_registered, make_env
from sacfast.envs.protocol import EnvironmentFault, EpisodeStatistics, StepResult, VectorEnv
from sacfast.envs.seeds import environment_seeds
from sacfast.envs.spaces import EnvSpec, ObservationLeaf, Source

__all__ = [
    "EnvPoolVectorEnv",
    "EnvSpec",
    "EnvironmentFault",
    "EpisodeStatistics",
    "GymnasiumVectorEnv",
    "ImageArray",
    "ObservationLeaf",
    "Source",
    "StepResult",
    "VectorEnv",
    "environment_seeds",
    "import_envpool",
    "is_registered",
    "make_env",
]
