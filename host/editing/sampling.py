"""An edit on the host: a patched model, and the host's own sampling of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.sample
import comfy.samplers
from torch import Tensor

from ..checkpoints.folders import Keeper
from ..runs.patching import patch
from .edit import Edit
from .edit_run import EditRun


def apply_edit(model: Any, edit: Edit, keeper: Keeper | None = None) -> Any:
    """Makes a clone of the model that samples the edit with any of the host's samplers.

    Args:
        model: The user's ModelPatcher, which is not touched.
        edit: What to sample.
        keeper: Keeps the model's answers, if they are kept.

    Returns:
        The clone.
    """
    return patch(model, partial(EditRun, edit, keeper), edit.frames_per_pass, with_deep=edit.deep)


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
    """Samples a patched model by the host's own sampling.

    Args:
        model: A clone from `apply_edit`.
        positive: The edit prompt, a CONDITIONING.
        negative: The negative prompt, a CONDITIONING.
        cfg: Scale of the guidance, 1 for none.
        sampler: The name of one of the host's samplers.
        sigmas: Noise levels, falling, (S+1,).
        latents: What sampling starts from, (N, C, h, w) as on a LATENT socket.
        noise: Added to the latents, of unit scale, (N, C, h, w).
        seed: Of the noise that the sampler itself draws.
        callback: Called by the host at every step.

    Returns:
        The edit's latents, (N, C, h, w) as on a LATENT socket.
    """
    chosen = comfy.samplers.sampler_object(sampler)
    return comfy.sample.sample_custom(
        model, noise, cfg, chosen, sigmas, positive, negative, latents, callback=callback, seed=seed
    )
