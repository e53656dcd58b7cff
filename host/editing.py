"""An edit on the host: a patched model, and the host's own sampling of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.sample
import comfy.samplers
from torch import Tensor

from .edit_run import Edit, EditRun
from .patching import patch


def apply_edit(model: Any, edit: Edit) -> Any:
    """A clone of the model that samples the edit under any of the host's samplers."""
    return patch(model, partial(EditRun, edit), edit.frames_per_pass, with_deep=edit.deep)


def sample_edit(
    model: Any,
    positive: Any,
    negative: Any,
    cfg: float,
    sampler: str,
    sigmas: Tensor,
    latents: Tensor,
    noise: Tensor,
    seed: int,
    callback: Callable[..., None],
) -> Tensor:
    """The host's own sampling of a patched model from `latents` (N, C, h, w) as on a LATENT socket,
    `noise` of unit scale added to them.
    """
    chosen = comfy.samplers.sampler_object(sampler)
    return comfy.sample.sample_custom(
        model, noise, cfg, chosen, sigmas, positive, negative, latents, callback=callback, seed=seed
    )
