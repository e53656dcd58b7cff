"""In which blocks Plug-and-Play's features are the source's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.tokenflow_ops.injection import EVERY_RESOLUTION, ONE_BLOCK
from torch import Tensor

from ..helpers import call, edit, invert, tiny_model
from ..tiny_models import moving_clip

BLOCKS = range(3, 9)  # below full resolution, with self-attention


@pytest.fixture(scope="module")
def still() -> Any:
    """Matches of a clip in which nothing moves: all frames' features are alike."""
    latents = {"samples": moving_clip(1, 16, 16)["samples"].repeat(5, 1, 1, 1)}
    inversion = invert(tiny_model(), latents)[0]
    features = call(ExtractFeatures.execute, tiny_model(), inversion, storage="recompute")[0]
    return call(BuildCorrespondences.execute, features, keyframe_interval=4, intervals="even")[0]


def from_the_source(still: Any, features_in: str, **inputs: Any) -> list[int]:
    """Edits; returns the blocks whose features were the source's throughout."""
    unet = tiny_model().model.diffusion_model
    seen: dict[int, list[Tensor]] = {block: [] for block in BLOCKS}
    hooks = [
        unet.output_blocks[block][0].out_layers.register_forward_hook(
            lambda module, args, out, block=block: seen[block].append(out[:1].clone())
        )
        for block in BLOCKS
    ]
    try:
        injection = call(
            PlugAndPlay.execute, attention_until=0.0, features_until=1.0, features_in=features_in
        )[0]
        edit(correspondences=still, injection=injection, **inputs)
    finally:
        for hook in hooks:
            hook.remove()

    def alike(found: list[Tensor]) -> bool:
        """Whether all that was seen is near one of as many as there are steps."""
        first = [found[0]]
        for part in found:
            if all((part - other).norm() > 1e-3 * part.norm() for other in first):
                first.append(part)
        return len(first) == len(still.steps)

    return [block for block in BLOCKS if alike(seen[block])]


@pytest.mark.parametrize(
    "inputs",
    [
        {"consistency": "per frame"},
        {"propagation": "attention", "carry_until": 0.0},
        {"propagation": "deep features"},
    ],
    ids=["per frame", "attention", "deep features"],
)
def test_features_are_the_sources_in_the_papers_block_or_in_one_of_every_resolution(
    still: Any, inputs: dict[str, Any]
) -> None:
    assert from_the_source(still, ONE_BLOCK, **inputs) == [4]
    assert from_the_source(still, EVERY_RESOLUTION, **inputs) == [4, 7]


def test_the_papers_block_is_the_default(still: Any) -> None:
    with torch.inference_mode():
        assert PlugAndPlay.execute().args[0] == PlugAndPlay.execute(features_in=ONE_BLOCK).args[0]
