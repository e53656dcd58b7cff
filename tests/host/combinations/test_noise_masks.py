"""Noise masks under the host's samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from torch import Tensor

import nodes

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    STEPS,
    applied,
    call,
    inverted,
    matched,
    relative_error,
)
from ..tiny_models import moving_clip
from .short import CLIP, ROUNDING, Patch, node


def own_masks() -> Tensor:
    """A column of latents for each frame, another each time."""
    masks = torch.zeros(CLIP[0], 64, 128)
    for frame in range(len(masks)):
        masks[frame, :, 32 * frame : 32 * (frame + 1)] = 1
    return masks


def with_ksampler(model: Any, latents: dict[str, Any]) -> Tensor:
    """New noise on the source."""
    return call(
        nodes.KSampler().sample,
        model,
        0,
        STEPS,
        4.0,
        "euler",
        "normal",
        POSITIVE,
        NEGATIVE,
        latents,
        1.0,
    )[0]["samples"]


def with_sampler_custom(model: Any, latents: dict[str, Any]) -> Tensor:
    sampler = comfy.samplers.sampler_object("euler")
    return call(
        SamplerCustom.execute,
        model,
        True,
        0,
        4.0,
        POSITIVE,
        NEGATIVE,
        sampler,
        inverted(*CLIP)[2],
        latents,
    )[0]["samples"]


@pytest.mark.parametrize("sample", [with_ksampler, with_sampler_custom])
def test_frames_are_edited_inside_their_own_noise_mask(
    sample: Callable[[Any, Any], Tensor],
) -> None:
    clean, masks = moving_clip(3, 8, 16), own_masks()
    latents = nodes.SetLatentNoiseMask().set_mask(clean, masks)[0]
    found = sample(applied(correspondences=matched(*CLIP), frames_per_pass=2), latents)
    inside = (masks[:, None, ::8, ::8] > 0).expand_as(found)
    torch.testing.assert_close(found[~inside], clean["samples"][~inside])
    for frame, part in enumerate(inside):
        assert relative_error(found[frame][part], clean["samples"][frame][part]) > 0.1
    assert (
        relative_error(found, sample(applied(correspondences=matched(*CLIP)), latents)) < ROUNDING
    )


def test_differential_diffusion_of_a_soft_mask() -> None:
    clean = moving_clip(3, 8, 16)
    soft = own_masks() * torch.linspace(0.2, 1, 64)[:, None]
    latents = nodes.SetLatentNoiseMask().set_mask(clean, soft)[0]

    def sampled(frames_per_pass: int, patch: Patch) -> Tensor:
        return with_ksampler(
            patch(applied(correspondences=matched(*CLIP), frames_per_pass=frames_per_pass)), latents
        )

    differential = node(DifferentialDiffusion.execute, 1.0)
    found = sampled(2, differential)
    assert relative_error(found, sampled(0, differential)) < ROUNDING
    assert relative_error(found, sampled(0, lambda model: model)) > 10 * ROUNDING
