"""The model families that the pack works on.

A new one is a module of its own, and a line in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ...tokenflow_ops.backbone import Backbone
from . import unet


class Family(Protocol):
    """What a module of this folder offers."""

    def find(self, diffusion_model: Any) -> Backbone | None:
        """Finds a model's layers; None for a model of another family."""

    def wrapper(self, backbone: Backbone, path: str, module: Any) -> Callable[..., Any]:
        """Makes what takes the place of a layer's forward during a run.

        Args:
            backbone: The model's layers.
            path: The layer's path.
            module: The layer.

        Returns:
            A function that is called with (original forward, *args, **kwargs).
        """


FAMILIES: list[Family] = [unet]


def backbone_of(diffusion_model: Any) -> tuple[Family, Backbone] | None:
    """Returns a model's family and layers; None for models that no family knows."""
    for family in FAMILIES:
        if (found := family.find(diffusion_model)) is not None:
            return family, found
    return None
