"""Transformers under the host's guidance nodes: frame by frame the plain host, and equal frames
edited together what the host makes of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_flux import FluxDisableGuidance, FluxGuidance
from comfy_extras.nodes_sd3 import SkipLayerGuidanceSD3
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from tokenflow_pack.nodes import presets
from tokenflow_pack.nodes.presets import BY_PRESET
from tokenflow_pack.tokenflow_ops import ATTENTION, DEEP_FEATURES
from tokenflow_pack.tokenflow_ops.propagation import CHANGES, Repeats

from ..helpers import call, relative_error, watch
from ..tiny_transformers import prompt, tiny_transformer
from .edits import CFG, NEGATIVE, POSITIVE, copies, edited, plain


@dataclass(frozen=True)
class Guidance:
    """Of a family: what is put on its model, and on its prompts; and the scale."""

    name: str
    on_model: Callable[[Any], Any] = lambda model: model
    on_prompt: Callable[[Any], Any] = lambda words: words
    cfg: float = CFG

    @property
    def inputs(self) -> dict[str, Any]:
        prompts = {"positive": POSITIVE, "negative": NEGATIVE}
        words = {key: self.on_prompt(prompt(self.name, seed)) for key, seed in prompts.items()}
        return {"model": self.on_model(tiny_transformer(self.name)), "cfg": self.cfg, **words}


def put(execute: Callable[..., Any], *settings: Any, **more: Any) -> Callable[[Any], Any]:
    """A node on a model or a prompt."""
    return lambda what: call(execute, what, *settings, **more)[0]


def nag(model: Any) -> Any:
    from comfy_extras.nodes_nag import NAGuidance

    return call(NAGuidance.execute, model, 5.0, 0.5, 1.5)[0]


GUIDANCE = {
    "no guidance": Guidance("SD 3", cfg=1.0),
    "a skipped block": Guidance("SD 3", put(SkipLayerGuidanceSD3.execute, "1", 3.0, 0.0, 1.0)),
    "skipped inner blocks": Guidance(
        "SD 3.5 medium", put(SkipLayerGuidanceSD3.execute, "0, 2, 3", 3.0, 0.0, 1.0)
    ),
    "skipped blocks of both kinds": Guidance(
        "Flux", put(SkipLayerGuidanceDiT.execute, 3.0, 0.0, 1.0, "1, 2", "1", 0.0)
    ),
    "blocks skipped for the negative": Guidance(
        "Flux", put(SkipLayerGuidanceDiTSimple.execute, 0.0, 1.0, "1", "1")
    ),
    "embedded and true guidance": Guidance(
        "Flux", on_prompt=put(FluxGuidance.execute, 1.5), cfg=2.0
    ),
    "embedded guidance alone": Guidance("Flux", on_prompt=put(FluxGuidance.execute, 4.0), cfg=1.0),
    "embedded guidance off": Guidance("Flux", on_prompt=put(FluxDisableGuidance.execute)),
    "CFGZeroStar": Guidance("Z-Image", put(CFGZeroStar.execute)),
    "APG": Guidance("Qwen-Image", put(APG.execute, 1.0, 5.0, 0.5)),
    "NAG": Guidance("Flux", nag, cfg=1.0),
}
NEWER = pytest.mark.skipif(
    find_spec("comfy_extras.nodes_nag") is None, reason="newer hosts have it"
)
CASES = [pytest.param(name, marks=NEWER if name == "NAG" else ()) for name in GUIDANCE]


@pytest.mark.parametrize("name", CASES)
def test_frame_by_frame_it_is_the_plain_host_bit_for_bit(name: str) -> None:
    guidance = GUIDANCE[name]
    model = guidance.inputs["model"]
    options = repr(model.model_options)
    modules = {path: vars(part).keys() for path, part in model.model.named_modules()}
    found = edited(guidance.name, consistency="per frame", **guidance.inputs)
    assert torch.equal(found, plain(guidance.name, **guidance.inputs))
    assert relative_error(found, edited(guidance.name, consistency="per frame")) > 1e-3
    edited(guidance.name, **{**guidance.inputs, "model": model})
    assert repr(model.model_options) == options
    assert {path: vars(part).keys() for path, part in model.model.named_modules()} == modules


@pytest.mark.parametrize("name", CASES)
def test_equal_frames_are_edited_as_the_plain_host_edits_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By preset as if every second step were late enough to take the keyframes' change."""
    late = Repeats(0.0, 1.0, apart=1.0, takes=CHANGES)
    monkeypatch.setattr(presets, "TRANSFORMERS_REPEAT", late)
    guidance = GUIDANCE[name]
    clip = {"correspondences": copies(guidance.name)}
    wanted = plain(guidance.name, 1, **clip, **guidance.inputs)
    for propagation in (ATTENTION, DEEP_FEATURES, BY_PRESET):
        choices = {"propagation": propagation, "carry_until": 0.0}
        found = edited(guidance.name, **choices, **clip, **guidance.inputs)
        assert relative_error(found, wanted.expand_as(found)) < 1e-4


@NEWER
def test_guidance_inside_attention_asks_for_all_prompts_in_a_lean_edit() -> None:
    guidance = GUIDANCE["NAG"]
    clip = {"correspondences": copies(guidance.name)}
    wanted = plain(guidance.name, 1, **clip, **guidance.inputs)
    presets = {"preset": "lean", "propagation": DEEP_FEATURES, "carry_until": 0.5}
    found = edited(guidance.name, **presets, **clip, **guidance.inputs)
    assert relative_error(found, wanted.expand_as(found)) < 1e-4


def test_no_guidance_asks_for_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    lists: list[int] = []
    watch(monkeypatch, lambda asked, work: lists.append(sum(bool(part) for part in asked.conds)))
    assert torch.isfinite(edited("SD 3", cfg=1.0)).all()
    assert set(lists) == {1}
