"""Models that paint in a few steps, Flux schnell as one of them: from fresh noise on the source."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.tokenflow_ops import ATTENTION, DEEP_FEATURES
from torch import Tensor

import nodes

from ..helpers import built, call, relative_error
from ..once import once_a_module
from ..tiny_transformers import clip, prompt, tiny_transformer
from .edits import FRAMES, NEGATIVE, POSITIVE, SIZE, SOURCE, edited

NAME, STEPS, SEED = "Flux schnell", 4, 7
START = 0.75  # three of its four steps


def source(copies: bool) -> Tensor:
    whole = clip(NAME, 1 if copies else FRAMES, *SIZE)["samples"]
    return torch.cat([whole] * FRAMES) if copies else whole


@once_a_module
def matched(copies: bool) -> Any:
    model = tiny_transformer(NAME)
    latents = {"samples": source(copies)}
    settings = {"steps": STEPS, "scheduler": "simple", "refinement": "none"}
    inversion = call(
        InvertVideo.execute,
        model,
        latents,
        prompt(NAME, SOURCE),
        **settings,
        check_reconstruction=False,
    )[0]
    features = call(ExtractFeatures.execute, model, inversion)[0]
    return built(features)


def painted(noise: str, copies: bool, **inputs: Any) -> Tensor:
    fresh = {"noise": noise, "seed": SEED, "start": START, "cfg": 1.0}
    return edited(NAME, correspondences=matched(copies), **fresh, **inputs)


def host(latents: Tensor) -> Tensor:
    """The host's own three steps of four, from noise on the source."""
    prompts = prompt(NAME, POSITIVE), prompt(NAME, NEGATIVE)
    found = call(
        nodes.KSamplerAdvanced().sample,
        tiny_transformer(NAME),
        "enable",
        SEED,
        STEPS,
        1.0,
        "euler",
        "simple",
        *prompts,
        {"samples": latents},
        1,
        STEPS,
        "disable",
    )
    return found[0]["samples"]


def test_it_has_no_guidance_input() -> None:
    assert not any("guidance" in name for name in tiny_transformer(NAME).model.state_dict())


def test_frame_by_frame_it_is_the_plain_hosts_sdedit() -> None:
    found = painted("fresh", False, consistency="per frame")
    assert relative_error(found, host(source(False))) < 1e-6


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
def test_equal_frames_from_one_noise_are_edited_as_the_host_edits_one(propagation: str) -> None:
    found = painted("fresh, one for all frames", True, propagation=propagation)
    wanted = host(source(True)[:1])
    assert relative_error(found, wanted.expand_as(found)) < 1e-4
    moving = painted("fresh, one for all frames", False, propagation=propagation)
    alone = painted("fresh, one for all frames", False, consistency="per frame")
    assert relative_error(moving, alone) > 1e-3
