"""Intervals by content at the node: told, and taken by every mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures

from ..helpers import call, edit, invert, tiny_model
from ..once import once_a_module
from ..tiny_models import moving_clip

STILL, MOVING, SIZE = 12, 3, (12, 12)


@once_a_module
def features() -> Any:
    """Of a clip whose frames are the same at first."""
    latents = moving_clip(1 + MOVING, *SIZE)["samples"]
    source = torch.cat([latents[:1].expand(STILL, -1, -1, -1), latents[1:]])
    inversion = invert(tiny_model(), {"samples": source}, check_reconstruction=False)[0]
    return call(ExtractFeatures.execute, tiny_model(), inversion, storage="memory")[0]


def built(**inputs: Any) -> Any:
    with torch.inference_mode():
        return BuildCorrespondences.execute(
            features(), keyframe_interval=3, backend="torch", cuts="none", **inputs
        )


def told(output: Any) -> str:
    return str(output.ui.as_dict()["text"])


def test_by_content_is_the_default_and_the_node_says_what_it_found() -> None:
    output = built()
    assert output.args[0].starts == (0, STILL)
    assert "15 frames, 2 keyframes a step, one in 3 to 12 frames" in told(output)
    for step in output.args[0].steps:
        first, second = step.keyframes.tolist()
        assert 0 <= first < STILL <= second


def test_even_is_one_in_each() -> None:
    output = built(intervals="even")
    assert output.args[0].starts == tuple(range(0, STILL + MOVING, 3))
    assert "5 keyframes a step, one in 3 frames" in told(output)


@pytest.mark.parametrize(
    "mode", ["tokenflow", "tokenflow, public code", "joint attention", "per frame"]
)
def test_every_mode_takes_them(mode: str) -> None:
    found = edit(correspondences=built().args[0], consistency=mode)
    assert found.shape[0] == STILL + MOVING
    assert bool(torch.isfinite(found).all())
