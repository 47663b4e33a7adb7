"""The native calls of collection: the usual case of what happens at every step. See csrc/collect/collect_bind.cpp."""

from sacfast._install import advice

try:
    from sacfast._collect import Actor, flatten, rescale, row_widths, uneventful, write_rows
except ImportError as error:
    raise ImportError(
        f"sacfast: the native module _collect is not built for this Python ({error}); {advice('_collect')}"
    ) from error

__all__ = ["Actor", "flatten", "rescale", "row_widths", "uneventful", "write_rows"]
