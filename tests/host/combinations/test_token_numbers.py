"""Patches that change the number of tokens: each works, or is refused by an error that says why."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_tomesd import TomePatchModel
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.tokenflow_ops.editing import step as method

from ..helpers import (
    applied,
    built,
    call,
    edit,
    extracted,
    injection,
    inverted,
    matched,
    relative_error,
    stock,
    tiny_model,
)
from .short import CLIP, ROUNDING, Patch, node, short

MERGING: dict[str, Patch] = {
    "ToMe": node(TomePatchModel.execute, 0.5),
    "HyperTile": node(HyperTile.execute, 32, 2, 0, False),
}


@pytest.mark.parametrize("name", MERGING)
@pytest.mark.parametrize("consistency", MODES)
def test_merged_and_tiled_tokens_are_refused(name: str, consistency: str) -> None:
    # Without it nothing of ours is done to the frames.
    source = injection() if consistency == "per frame" else None
    with pytest.raises(
        NodeError,
        match=r"TokenFlow Sampler, input 'model': layer input_blocks\.1.* tokens here and has "
        ".*ToMe, HyperTile",
    ):
        short(MERGING[name](tiny_model()), consistency=consistency, injection=source)


@pytest.mark.parametrize("name", MERGING)
def test_features_of_merged_and_tiled_tokens_are_refused(name: str) -> None:
    with pytest.raises(
        NodeError,
        match=r"Extract SA Features, input 'model': .* tokens here and has .*ToMe, HyperTile",
    ):
        call(ExtractFeatures.execute, MERGING[name](tiny_model()), inverted(*CLIP)[0])


def test_tiled_tokens_are_the_plain_hosts_where_nothing_is_patched() -> None:
    tiled = MERGING["HyperTile"](tiny_model())
    assert torch.equal(
        stock(applied(tiled, matched(*CLIP), consistency="per frame"), clip=CLIP),
        stock(tiled, clip=CLIP),
    )


def downscaled(factor: float = 2.0, end: float = 1.0) -> Any:
    return call(
        PatchModelAddDownscale.execute,
        tiny_model(),
        3,
        factor,
        0.0,
        end,
        True,
        "bicubic",
        "bicubic",
    )[0]


@pytest.mark.parametrize("merged_from", [method.MERGED_FROM, 1])
@pytest.mark.parametrize("injected", [False, True])
def test_a_downscale_that_the_source_features_do_not_know_is_refused(
    injected: bool, merged_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method, "MERGED_FROM", merged_from)
    with pytest.raises(
        NodeError,
        match=r"TokenFlow Sampler, input 'model': .* here and .* in the source"
        ".*PatchModelAddDownscale",
    ):
        short(downscaled(), injection=injection() if injected else None)


@pytest.mark.parametrize(
    ("factor", "end", "found"),
    [(2.0, 0.35, r"tokens at step 1 and \d+ at the first"), (1.5, 1.0, r"tokens are no level of")],
)
def test_features_of_a_downscale_that_comes_and_goes_are_refused(
    factor: float, end: float, found: str
) -> None:
    with pytest.raises(
        NodeError, match=rf"Extract SA Features, input 'model': .*{found}.*PatchModelAddDownscale"
    ):
        call(
            ExtractFeatures.execute,
            downscaled(factor, end),
            inverted(*CLIP)[0],
            layers="all",
            steps="every",
        )


def test_a_downscale_at_all_steps_of_source_and_edit_works() -> None:
    features = call(
        ExtractFeatures.execute,
        downscaled(),
        inverted(*CLIP)[0],
        layers="all",
        steps="every",
        storage="memory",
    )[0]
    assert sum(tokens for tokens, _ in features.shapes.values()) < sum(
        tokens for tokens, _ in extracted(*CLIP).shapes.values()
    )
    correspondences = built(features)
    again = partial(
        edit, downscaled(), correspondences=correspondences, injection=injection(), start=0.6
    )
    assert relative_error(again(frames_per_pass=2), again()) < ROUNDING
