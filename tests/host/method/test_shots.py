"""A clip with a cut is edited as its shots are, each alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures

from ..helpers import call, injection, invert, relative_error
from ..once import once_a_module
from ..small import edit, tiny_model
from ..tiny_models import moving_clip

LENGTHS, SIZE = (5, 4), (12, 12)
ROUNDING = 1e-5


def shots() -> list[torch.Tensor]:
    """Two shots of different planes; the second is paler: no patch of it is in the first."""
    first, second = (
        moving_clip(length, *SIZE, seed=seed)["samples"] for seed, length in enumerate(LENGTHS)
    )
    return [first, 0.5 * second + 4.0]


@once_a_module
def matched(which: int | None = None, **inputs: Any) -> Any:
    """Matches of the whole clip, or of one shot; every frame is a keyframe, as draws depend on
    where a frame is in the clip.
    """
    latents = torch.cat(shots()) if which is None else shots()[which]
    source = {"samples": latents}
    inversion = invert(tiny_model(), source, steps=3, check_reconstruction=False)[0]
    features = call(
        ExtractFeatures.execute,
        tiny_model(),
        inversion,
        layers="all",
        steps="every",
        storage="memory",
    )[0]
    built = call(
        BuildCorrespondences.execute,
        features,
        keyframe_interval=1,
        intervals="even",
        backend="torch",
        **inputs,
    )
    return built[0]


def test_the_cut_is_found_and_said() -> None:
    assert matched().shots == (0, LENGTHS[0])
    assert matched(cuts="none").shots == (0,)
    assert all(matched(which).shots == (0,) for which in range(2))


@pytest.mark.parametrize("mode", ["tokenflow", "joint attention"])
@pytest.mark.parametrize("injected", [False, True])
def test_the_edit_is_that_of_each_shot(mode: str, injected: bool) -> None:
    choices = {"consistency": mode, "injection": injection() if injected else None}
    whole = edit(correspondences=matched(), **choices)
    alone = torch.cat([edit(correspondences=matched(which), **choices) for which in range(2)])
    assert relative_error(whole, alone) < ROUNDING
    across = edit(correspondences=matched(cuts="none"), **choices)
    assert relative_error(across, alone) > 100 * ROUNDING


def test_windows_end_at_the_cut() -> None:
    choices = {"attended_keyframes": 3, "preset": "faithful"}
    whole = edit(correspondences=matched(), **choices)
    alone = torch.cat([edit(correspondences=matched(which), **choices) for which in range(2)])
    assert relative_error(whole, alone) < ROUNDING
