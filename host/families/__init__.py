"""The model families that the pack works on.

A new one is a module of its own, and a line in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from comfy.model_sampling import CONST

from ...tokenflow_ops.backbone import Backbone
from ...tokenflow_ops.parameterization import Parameterization
from . import transformer, unet


class Family(Protocol):
    """What a module of this folder offers."""

    def find(self, diffusion_model: Any) -> Backbone | None:
        """Finds a model's layers; None for a model of another family."""

    def wrapped(self, backbone: Backbone) -> tuple[str, ...]:
        """Lists the modules whose forward is wrapped during a run."""

    def wrapper(self, backbone: Backbone, path: str, module: Any) -> Callable[..., Any]:
        """Makes what takes the place of a module's forward during a run.

        Args:
            backbone: The model's layers.
            path: The module's path.
            module: The module.

        Returns:
            A function that is called with (original forward, *args, **kwargs).
        """

    def given(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Makes what the host's `transformer_options` hold during a pass besides the pass itself.

        Args:
            options: What they hold already.

        Returns:
            Further entries.
        """

    def watch(self, clone: Any, key: str, backbone: Backbone) -> None:
        """Watches every call of the model during a run.

        Args:
            clone: The ModelPatcher, ours.
            key: Of our wrappers.
            backbone: The model's layers.
        """


FAMILIES: list[Family] = [unet, transformer]


def backbone_of(model: Any) -> tuple[Family, Backbone] | None:
    """Finds a model's family and layers.

    Args:
        model: The ModelPatcher.

    Returns:
        Both; None for models that no family knows, and for what is no diffusion model.
    """
    # The ModelPatcher of a VAE or a text encoder has none.
    diffusion_model = getattr(model.model, "diffusion_model", None)
    if diffusion_model is None:
        return None
    for family in FAMILIES:
        if (found := family.find(diffusion_model)) is not None:
            flow = isinstance(model.get_model_object("model_sampling"), CONST)
            return family, replace(found, parameterization=Parameterization(flow))
    return None
