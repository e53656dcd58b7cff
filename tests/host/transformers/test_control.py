"""ControlNets of transformers: every frame has its own hint, in the inversion and in the edit."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
import comfy.sample
import comfy.samplers
import pytest
import torch
from tokenflow_pack.host.families import backbone_of
from tokenflow_pack.host.families.transformer import outer_control
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.tokenflow_ops import ATTENTION, DEEP_FEATURES
from torch import Tensor

import nodes

from ..helpers import built, call, relative_error, watch
from ..once import once_a_module
from ..tiny_transformers import clip, prompt, tiny_transformer
from . import edits
from .controls import CONTROLS, control, on_the_model, vae_of

FRAMES, SIZE, STEPS, CFG = 4, (6, 8), 2, 3.0
SOURCE, POSITIVE, NEGATIVE = 1, 2, 3
ROUNDING = 1e-5


def hints(count: int) -> Tensor:
    height, width = (8 * side for side in SIZE)
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(count))


def controlled(name: str, images: Tensor, *seeds: int) -> tuple[Any, Any]:
    """Positive and negative under the ControlNet."""
    both = [prompt(CONTROLS[name][0], seed) for seed in seeds or (POSITIVE, NEGATIVE)]
    return call(
        nodes.ControlNetApplyAdvanced().apply_controlnet,
        *both,
        control(name),
        images,
        0.7,
        0.0,
        1.0,
        vae=vae_of(name),
    )


def invert(name: str, latents: Any, positive: Any) -> Any:
    return call(
        InvertVideo.execute,
        tiny_transformer(CONTROLS[name][0]),
        latents,
        positive,
        steps=STEPS,
        scheduler="simple",
        check_reconstruction=False,
    )[0]


@once_a_module
def matched(name: str, copies: bool = False) -> Any:
    layout = CONTROLS[name][0]
    latents = clip(layout, 1 if copies else FRAMES, *SIZE)["samples"]
    latents = torch.cat([latents] * FRAMES) if copies else latents
    inversion = invert(name, {"samples": latents}, prompt(layout, SOURCE))
    features = call(ExtractFeatures.execute, tiny_transformer(layout), inversion)[0]
    return built(features)


def edited(name: str, prompts: tuple[Any, Any], copies: bool = False, **inputs: Any) -> Tensor:
    inputs = {"cfg": CFG, "carry_until": 0.0, "frames_per_pass": 2, **inputs}
    model = tiny_transformer(CONTROLS[name][0])
    return call(Sampler.execute, model, *prompts, matched(name, copies), **inputs)[0]["samples"]


def plain(name: str, image: Tensor, frame: int, copies: bool = False) -> Tensor:
    """The host's own sampling of one frame with one hint."""
    layout = CONTROLS[name][0]
    inversion, model = matched(name, copies).features.inversion, tiny_transformer(layout)
    latent_format = model.get_model_object("latent_format")
    start = inversion.latents[0, frame : frame + 1]
    start = start.unsqueeze(2) if layout == "Qwen-Image" else start
    sampler = comfy.samplers.sampler_object("euler")
    empty = latent_format.process_out(torch.zeros_like(start))
    asked = model, start, CFG, sampler, inversion.sigmas, *controlled(name, image), empty
    return call(comfy.sample.sample_custom, *asked, seed=0)[0]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], Tensor]]:
    """Of every call of a ControlNet in a pass: its frames, and the hints of the batch."""
    found: list[tuple[list[int], Tensor]] = []
    get_control = comfy.controlnet.ControlNet.get_control

    def watched(self: Any, x: Tensor, t: Tensor, cond: Any, many: int, options: Any) -> Any:
        out = get_control(self, x, t, cond, many, options)
        work = options.get("tokenflow_pass")
        frames = [] if work is None else work.frames.tolist()
        found.append((frames * many, self.cond_hint.expand(len(x), *self.cond_hint.shape[1:])))
        return out

    monkeypatch.setattr(comfy.controlnet.ControlNet, "get_control", watched)
    return found


@pytest.mark.parametrize("count", [FRAMES, 3], ids=["own", "repeating"])
@pytest.mark.parametrize("name", CONTROLS)
def test_frame_by_frame_it_is_the_plain_host_with_every_frames_hint(name: str, count: int) -> None:
    images = hints(count)
    found = edited(name, controlled(name, images), consistency="per frame")
    rows = range(FRAMES)
    wanted = torch.cat([plain(name, images[i % count : i % count + 1], i)[None] for i in rows])
    assert relative_error(found, wanted) < ROUNDING
    bare = [prompt(CONTROLS[name][0], seed) for seed in (POSITIVE, NEGATIVE)]
    assert relative_error(found, edited(name, bare, consistency="per frame")) > 100 * ROUNDING


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
@pytest.mark.parametrize("name", CONTROLS)
def test_keyframes_and_frames_see_their_own_hints(
    name: str, propagation: str, seen: list[tuple[list[int], Tensor]]
) -> None:
    images = hints(3)
    plain_hints = []
    for i in range(3):
        plain(name, images[i : i + 1], 0)
        plain_hints.append(seen[-1][1][0])
    seen.clear()
    assert torch.isfinite(edited(name, controlled(name, images), propagation=propagation)).all()
    # Two frames with two prompts, or with deep features between keyframes with one.
    batches = {4} if propagation == ATTENTION else {2, 4}
    assert {len(frames) for frames, _ in seen} == batches
    assert {i for frames, _ in seen for i in frames} == set(range(FRAMES))
    for frames, rows in seen:
        wanted = torch.stack([plain_hints[i % 3] for i in frames])
        assert relative_error(rows, wanted) < ROUNDING


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
@pytest.mark.parametrize("name", CONTROLS)
def test_equal_frames_with_equal_hints_stay_equal(name: str, propagation: str) -> None:
    """Together they are what the host makes of one: nothing of a hint is lost on the way."""
    images = hints(1)
    found = edited(name, controlled(name, images), True, propagation=propagation)
    wanted = torch.stack([plain(name, images, 0, True)] * FRAMES)
    assert relative_error(found, wanted) < 1e-4


@pytest.mark.parametrize("name", CONTROLS)
def test_a_clip_is_inverted_with_every_frames_hint(name: str) -> None:
    images, whole = hints(FRAMES), clip(CONTROLS[name][0], FRAMES, *SIZE)["samples"]
    positive, _ = controlled(name, images, SOURCE, NEGATIVE)
    found = invert(name, {"samples": whole}, positive).latents
    for i in range(FRAMES):
        own, _ = controlled(name, images[i : i + 1], SOURCE, NEGATIVE)
        wanted = invert(name, {"samples": whole[i : i + 1]}, own).latents
        assert relative_error(found[:, i : i + 1], wanted) < ROUNDING


@pytest.mark.parametrize("name", ["SD 3", "Qwen-Image"])
def test_hints_are_encoded_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever passes and steps ask for them."""
    vae, sizes, passes = vae_of(name), [], []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: sizes.append(len(pixels)) or encode(pixels))
    watch(monkeypatch, lambda asked, work: passes.append(work))
    edited(name, controlled(name, hints(3)))
    assert sum(sizes) == 3
    assert len(passes) > 2 * STEPS - 1


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
def test_a_controlnet_that_is_a_patch_holds_for_all_frames(propagation: str) -> None:
    model = on_the_model(tiny_transformer("Qwen-Image"), hints(1))
    clip = {"correspondences": edits.copies("Qwen-Image")}
    found = edits.edited("Qwen-Image", model, propagation=propagation, **clip)
    wanted = edits.plain("Qwen-Image", 1, model, **clip)
    assert relative_error(found, wanted.expand_as(found)) < 1e-4
    bare = edits.edited("Qwen-Image", propagation=propagation, **clip)
    assert relative_error(found, bare) > 1e-3


def test_a_controlnet_that_is_a_patch_is_refused_with_several_images() -> None:
    """Every pass would lay them over other frames."""
    model = on_the_model(tiny_transformer("Qwen-Image"), hints(2))
    with pytest.raises(NodeError, match=r"'model': a ControlNet that is a patch.*2 images"):
        edits.edited("Qwen-Image", model)


def test_residuals_between_inner_blocks_are_left_out() -> None:
    """Those behind the last inner block are every frame's own."""
    _, backbone = backbone_of(tiny_transformer("Flux"))
    assert backbone.deep == ("double_blocks.2", "single_blocks.0", "single_blocks.1")
    residuals = {"input": ["a", "b", "c"], "middle": [], "output": ["d", "e", "f"]}
    left = outer_control(residuals, backbone)
    assert left == {"input": ["a", "b", None], "middle": [], "output": [None, "e", "f"]}
