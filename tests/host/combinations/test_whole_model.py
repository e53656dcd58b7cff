"""What keeps the model from running on all frames at all steps: refused, and the error says why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.features import ExtractFeatures

from ..helpers import (
    applied,
    call,
    extracted,
    invert,
    inverted,
    matched,
    stock,
    tiny_model,
)
from ..tiny_models import moving_clip
from .short import CLIP, Patch, node, plain, short


def windows(model: Any) -> Any:
    newer = (
        {"freenoise": False}
        if "freenoise" in signature(ContextWindowsManualNode.execute).parameters
        else {}
    )
    return call(
        ContextWindowsManualNode.execute,
        model,
        2,
        1,
        "standard_static",
        1,
        False,
        "pyramid",
        0,
        **newer,
    )[0]


NOT_FOR_THE_SOURCE: dict[str, Patch] = {
    "EasyCache": node(EasyCacheNode.execute, 3.0, 0.0, 1.0, False),
    "LazyCache": node(LazyCacheNode.execute, 3.0, 0.0, 1.0, False),
    "Self-Attention Guidance": node(SelfAttentionGuidance.execute, 0.5, 2.0),
}
STAGES: dict[str, Callable[[Patch], Any]] = {
    "DDIM Invert Video": lambda patch: invert(patch(tiny_model()), moving_clip(3, 8, 16)),
    "Extract SA Features": lambda patch: call(
        ExtractFeatures.execute, patch(tiny_model()), inverted(*CLIP)[0]
    ),
    "TokenFlow Sampler": lambda patch: short(patch(tiny_model())),
    "Apply TokenFlow": lambda patch: stock(
        patch(applied(correspondences=matched(*CLIP))), clip=CLIP
    ),
}
SOURCE_STAGES, EDIT_STAGES = list(STAGES)[:2], list(STAGES)[2:]


def animatediff(model: Any, windows: bool, motion: bool) -> Any:
    """What AnimateDiff-Evolved puts into a run's options."""
    state = SimpleNamespace(
        is_using_sliding_context=lambda: windows,
        motion_models=SimpleNamespace(models=["v3"] if motion else []),
    )
    clone = model.clone()
    clone.model_options["transformer_options"]["ADGS"] = state
    return clone


@pytest.mark.parametrize(
    "patch",
    [windows, partial(animatediff, windows=True, motion=False)],
    ids=["the host's", "AnimateDiff's"],
)
@pytest.mark.parametrize("stage", STAGES)
def test_context_windows_are_refused(stage: str, patch: Patch) -> None:
    with pytest.raises(NodeError, match=rf"{stage}, input 'model': a context handler.* Remove it"):
        STAGES[stage](patch)


@pytest.mark.parametrize("stage", STAGES)
def test_motion_models_are_refused(stage: str) -> None:
    with pytest.raises(NodeError, match=rf"{stage}, input 'model': a motion model .* without it"):
        STAGES[stage](partial(animatediff, windows=False, motion=True))


def test_animatediff_s_sampling_without_either_changes_nothing() -> None:
    assert torch.equal(short(animatediff(tiny_model(), windows=False, motion=False)), plain())


@pytest.mark.parametrize("stage", EDIT_STAGES)
def test_a_cache_that_skips_passes_is_refused(stage: str) -> None:
    with pytest.raises(
        NodeError, match=rf"{stage}, input 'model': EasyCache, which skips passes .* LazyCache"
    ):
        STAGES[stage](NOT_FOR_THE_SOURCE["EasyCache"])


@pytest.mark.parametrize("stage", SOURCE_STAGES)
@pytest.mark.parametrize("name", NOT_FOR_THE_SOURCE)
def test_a_source_that_not_all_of_the_model_sees_is_refused(name: str, stage: str) -> None:
    with pytest.raises(
        NodeError, match=rf"{stage}, input 'model': .*{name}.* to the sampler alone"
    ):
        STAGES[stage](NOT_FOR_THE_SOURCE[name])


def test_features_that_are_not_finite_are_refused() -> None:
    broken = tiny_model().clone()
    broken.set_model_unet_function_wrapper(
        lambda apply_model, args: apply_model(
            args["input"] * torch.nan, args["timestep"], **args["c"]
        )
    )
    with pytest.raises(NodeError, match=r"Extract SA Features, input 'model': NaN .*precision"):
        call(ExtractFeatures.execute, broken, inverted(*CLIP)[0])


def test_features_are_recorded_before_guidance_looks_again() -> None:
    guided = call(PerturbedAttentionGuidance.execute, tiny_model(), 2.0)[0]
    found, wanted = (
        call(
            ExtractFeatures.execute,
            guided,
            inverted(*CLIP)[0],
            layers="all",
            steps="every",
            storage="memory",
        )[0],
        extracted(*CLIP),
    )
    for layer in wanted.shapes:
        assert torch.equal(found.store.get(1, layer), wanted.store.get(1, layer))
