"""Names of devices: "cuda" alone means whichever GPU is current, and does not equal "cuda:0"."""

from __future__ import annotations

import torch


def with_index(device: torch.device | str) -> torch.device:
    """Return `device`, and for "cuda" without an index the GPU that is current now.

    A name is resolved once, where it comes in: tensors always tell their index, so a device without one would equal
    none of theirs. Without a GPU it stays as it is, for the caller to refuse.
    """
    resolved = torch.device(device)
    if resolved.type == "cuda" and resolved.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return resolved
