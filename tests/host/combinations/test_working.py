"""The host's other patches on the model together with TokenFlow: those that work."""

from __future__ import annotations

import pytest
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_attention_multiply import (
    UNetCrossAttentionMultiply,
    UNetSelfAttentionMultiply,
)
from comfy_extras.nodes_cfg import CFGNorm, CFGZeroStar
from comfy_extras.nodes_easycache import LazyCacheNode
from comfy_extras.nodes_eps import EpsilonScaling
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_fresca import FreSca
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_tcfg import TCFG

from ..helpers import (
    STEPS,
    call,
    relative_error,
    tiny_model,
    watch,
)
from .short import ROUNDING, Patch, node, old_node, plain, short

WORKING: dict[str, Patch] = {
    "FreeU": old_node("patch", FreeU, 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": old_node("patch", FreeU_V2, 1.3, 1.4, 0.9, 0.2),
    "RescaleCFG": old_node("patch", RescaleCFG, 0.7),
    "CFGZeroStar": node(CFGZeroStar.execute),
    "CFGNorm": node(CFGNorm.execute, 0.9),
    "Mahiro": node(Mahiro.execute),
    "TCFG": node(TCFG.execute),
    "APG": node(APG.execute, 1.0, 5.0, 0.5),
    "FreSca": node(FreSca.execute, 1.0, 1.5, 2),
    "EpsilonScaling": node(EpsilonScaling.execute, 1.005),
    "UNetSelfAttentionMultiply": node(UNetSelfAttentionMultiply.execute, 1.1, 1.0, 1.0, 1.2),
    "UNetCrossAttentionMultiply": node(UNetCrossAttentionMultiply.execute, 1.1, 1.0, 1.0, 1.2),
    "LazyCache": node(LazyCacheNode.execute, 3.0, 0.0, 1.0, False),
}


@pytest.mark.parametrize("name", WORKING)
def test_patches_that_work(name: str) -> None:
    """They do something, and the same however many passes the frames take."""
    start = 1.0 if name == "LazyCache" else 0.6  # it watches two steps before it skips one
    found = short(WORKING[name](tiny_model()), start=start, frames_per_pass=2)
    assert relative_error(found, short(WORKING[name](tiny_model()), start=start)) < ROUNDING
    assert relative_error(found, plain() if start < 1 else short(start=start)) > 10 * ROUNDING


def test_a_lazy_cache_skips_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    watch(monkeypatch, lambda _, frames_pass: seen.append(type(frames_pass).__name__))
    short(WORKING["LazyCache"](tiny_model()), start=1.0)
    assert seen.count("KeyframePass") == STEPS - 1
    assert seen.count("PropagationPass") == STEPS - 2  # the first step's frames are carried


def test_skip_layer_guidance_changes_nothing_in_a_unet() -> None:
    """It skips layers of diffusion transformers; a UNet has none of them."""
    guided = call(SkipLayerGuidanceDiT.execute, tiny_model(), 3.0, 0.0, 1.0, "1", "1", 0.0)[0]
    assert relative_error(short(guided), plain()) < ROUNDING
