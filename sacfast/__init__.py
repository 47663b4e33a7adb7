"""Soft Actor-Critic at the speed of the machine: fused ops for PyTorch, and an EnvPool trainer.

The public names. Each is imported when it is first used, so `from sacfast import ops` needs torch and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sacfast import ops
    from sacfast.config import SACConfig
    from sacfast.learner import make_learner
    from sacfast.replay import ReplayBuffer
    from sacfast.trainer import SAC, learn_together

__all__ = ["SAC", "ReplayBuffer", "SACConfig", "__version__", "learn_together", "make_learner", "ops"]

__version__ = "0.2.0"

_MODULE_OF = {
    "SAC": "sacfast.trainer",
    "learn_together": "sacfast.trainer",
    "SACConfig": "sacfast.config",
    "ReplayBuffer": "sacfast.replay",
    "make_learner": "sacfast.learner",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name == "ops":
        return import_module("sacfast.ops")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sacfast' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
