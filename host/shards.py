"""Which ComfyUIs share what runs now.

A ComfyUI is alone unless somebody (cluster/, which is no part of a release) connects it to others.
"""

from __future__ import annotations

from ..tokenflow_ops.shards import ALONE, Shards

_together: Shards = ALONE


def together() -> Shards:
    """Returns the ComfyUIs that share what runs now."""
    return _together


def connect(shards: Shards) -> None:
    """Shares clips with others from now on; with `ALONE` no longer."""
    global _together
    _together = shards
