"""Keyframes that were edited elsewhere, as the sampler's edit takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from comfy import model_management
from torch import Tensor

from ...tokenflow_ops import Correspondences, build_correspondences
from ...tokenflow_ops.carrying.given import GivenKeyframes
from ..families.latents import from_latent
from ..files.timings import search_timings
from ..validation.errors import NodeError


def check_given(
    node: str, model: Any, keyframes: GivenKeyframes, correspondences: Correspondences
) -> Tensor:
    """Checks that keyframes belong to the inverted clip.

    Args:
        node: The node's name, for errors.
        model: The ModelPatcher.
        keyframes: The keyframes, with what they make of their clip.
        correspondences: The clip's matches.

    Returns:
        The clip in the model's latent space, (N, C, h, w).

    Raises:
        NodeError: If they are another clip's or another autoencoder's, or a shot has none.
    """
    wanted = tuple(correspondences.features.inversion.latents.shape[1:])
    if (shape := tuple(keyframes.latents.shape)) != wanted:
        raise NodeError(
            node,
            "keyframes",
            f"a clip of latents {shape}, inverted was one of {wanted}.",
            "Connect to Carry Keyframes the frames that were encoded, and the same VAE.",
        )
    if not torch.isfinite(keyframes.latents).all():
        found, remedy = "NaN or infinite latents.", "Use another VAE, or run it in float32."
        raise NodeError(node, "keyframes", found, remedy)
    shots = correspondences.shots
    for first, stop in zip(shots, [*shots[1:], wanted[0]], strict=True):
        if not any(first <= number < stop for number in keyframes.numbers):
            raise NodeError(
                node,
                "keyframes",
                f"no keyframe in the shot that begins at frame {first}.",
                "Edit one of its frames as well, or set cuts to none in Build NN Correspondences.",
            )
    return from_latent(model, keyframes.latents)


def matched_to(
    node: str, correspondences: Correspondences, numbers: Sequence[int]
) -> Correspondences:
    """Returns a clip's matches with these keyframes at every step, found now if they are others.

    Args:
        node: The node's name, for errors.
        correspondences: The clip's matches.
        numbers: The keyframes, ascending.

    Returns:
        The matches.

    Raises:
        NodeError: If the features cannot be searched.
    """
    if all(step.keyframes.tolist() == list(numbers) for step in correspondences.steps):
        return correspondences
    try:
        return build_correspondences(
            correspondences.features,
            device=model_management.get_torch_device(),
            check=model_management.throw_exception_if_processing_interrupted,
            timings=search_timings(),
            shots=correspondences.shots,
            given=numbers,
        )
    except ValueError as error:
        raise NodeError(
            node, "correspondences", f"{error}.", "Check what was extracted."
        ) from error


def hidden_within(keyframes: GivenKeyframes, mask: Tensor | None) -> Tensor:
    """Finds where the model is to compute: what no keyframe shows, within the user's mask.

    Args:
        keyframes: The keyframes.
        mask: (H, W), (N, H, W) or (1, H, W), or None for everywhere.

    Returns:
        (N, H, W) in [0, 1].
    """
    hidden = keyframes.hidden
    if mask is None:
        return hidden
    masks = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
    sized = F.interpolate(masks, hidden.shape[1:], mode="bilinear")[:, 0]
    return hidden * sized.clamp(0, 1)
