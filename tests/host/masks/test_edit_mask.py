"""Masks found by the prompts alone: they are the object that the edit changes, and outside of them
the edit is the source.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy import model_management
from comfy.sampler_helpers import prepare_mask
from tokenflow_pack.host.files.demo_model import load_demo_model
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.edit_mask import FindEditMask
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.tokenflow_ops.masking.disagreement import LEVELS
from tokenflow_pack.tokenflow_ops.masking.outlines import ROUNDS
from torch import Tensor

import nodes

from ..helpers import (
    FRAMES,
    POSITIVE,
    SOURCE,
    call,
    edit,
    interrupt_after,
    interrupted,
    invert,
    inverted,
    pictures,
    relative_error,
    tiny_model,
    untouched,
    watched,
)

sys.path.append(str(Path(__file__).resolve().parents[3] / "demo"))
from clips import Clip

from ..once import once_a_module

COUNT, STEPS = 4, 2
WHOLE = 0.1  # share of the picture from which on an object is all in it, but for a part


def find(
    model: Any = None,
    inversion: Any = None,
    positive: Any = POSITIVE,
    frames: Tensor | None = None,
    **inputs: Any,
) -> tuple[Any, ...]:
    """Find Edit Mask's outputs, by default on the tiny model's clip."""
    return call(
        FindEditMask.execute,
        model or tiny_model(),
        inversion or inverted()[0],
        positive,
        pictures() if frames is None else frames,
        **inputs,
    )


# On the embedded model


@once_a_module
def parts() -> Any:
    """The embedded MODEL, CLIP and VAE."""
    with torch.inference_mode():
        return load_demo_model()


def encoded(text: str) -> Any:
    return call(nodes.CLIPTextEncode().encode, parts()[1], text)[0]


@dataclass(frozen=True)
class Source:
    """A clip of the world, inverted. frames: (N, H, W, 3). prompt: an edit of its surface."""

    clip: Clip
    frames: Tensor
    latents: Any
    inversion: Any
    prompt: Any


@once_a_module
def source(kind: str, number: int) -> Source:
    clip = Clip(kind, number, COUNT)
    frames = clip.pictures().movedim(1, -1)
    latents = call(nodes.VAEEncode().encode, parts()[2], frames)[0]
    inversion = invert(
        parts()[0],
        latents,
        positive=encoded(clip.caption),
        steps=STEPS,
        refinement="none",
        check_reconstruction=False,
    )[0]
    edited = clip.dressed(clip.surfaces(1)[0]).caption
    return Source(clip, frames, latents, inversion, encoded(edited))


@once_a_module
def masks_of(kind: str, number: int, grow: int) -> tuple[Any, ...]:
    """Find Edit Mask's outputs on a clip of the world."""
    clip = source(kind, number)
    return find(parts()[0], clip.inversion, clip.prompt, clip.frames, grow=grow)


def overlap(found: Tensor, true: Tensor) -> float:
    return float((found & true).sum() / (found | true).sum())


@pytest.mark.parametrize(("kind", "number"), [("plain", 1), ("enter", 1), ("pass", 8)])
def test_the_mask_is_the_object_that_the_edit_changes(kind: str, number: int) -> None:
    clip = source(kind, number)
    masks, preview, outlines = masks_of(kind, number, grow=0)
    assert masks.shape == clip.frames.shape[:3]
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    found, true = masks > 0.5, clip.clip.masks()
    assert overlap(found, true) > 0.8
    seen = [float(mask.float().mean()) for mask in true]
    assert (0 in seen) == (kind == "enter")
    for share, mask, object_ in zip(seen, found, true, strict=True):
        if share == 0:
            assert float(mask.float().mean()) < 0.01
        elif share > WHOLE:
            assert overlap(mask, object_) > 0.8
    torch.testing.assert_close(preview[found], clip.frames[found])
    torch.testing.assert_close(preview[~found], 0.3 * clip.frames[~found])
    assert overlap(outlines > 0.5, found) > 0.95
    soft = (outlines > 0) & (outlines < 1)
    assert 0 < float(soft.float().mean()) < 0.1


def test_outlines_do_not_grow() -> None:
    masks, _, outlines = masks_of("plain", 1, grow=4)
    assert torch.equal(outlines, masks_of("plain", 1, grow=0)[2])
    assert float(masks.mean()) > 1.2 * float(outlines.mean())


def test_outside_of_the_mask_the_edit_is_the_source() -> None:
    clip = source("plain", 1)
    masks = masks_of("plain", 1, grow=4)[0]
    model = parts()[0]
    features = call(ExtractFeatures.execute, model, clip.inversion)[0]
    found = edit(
        model,
        clip.prompt,
        encoded(clip.clip.caption),
        call(BuildCorrespondences.execute, features, 2)[0],
        mask=masks,
        cfg=2.0,
    )
    latents = clip.latents["samples"]
    inside = prepare_mask(masks, latents.shape, latents.device) > 0
    assert 0.1 < float(inside.float().mean()) < 0.5
    wanted = latents.masked_fill(inside, 0.0)
    assert relative_error(found.masked_fill(inside, 0.0), wanted) < 1e-5
    assert relative_error(found[inside], latents[inside]) > 0.1


# On the tiny one


# Calls of the model under each prompt, and all of them.
CALLS, ALL = len(LEVELS), 2 * len(LEVELS)


def test_the_model_stays_as_it_was() -> None:
    with untouched(tiny_model()):
        masks, preview, outlines = find()
    assert len(masks) == len(preview) == len(outlines) == FRAMES


@pytest.mark.parametrize("prompt", [0, 1], ids=["edit", "source"])
def test_an_interrupt_ends_it_within_one_call_of_the_model(prompt: int) -> None:
    made: list[int] = []
    last = prompt * CALLS + 1

    def see(_: Any) -> None:
        made.append(1)
        if len(made) == last:
            model_management.interrupt_current_processing()

    with untouched(tiny_model()), interrupted():
        find(watched(tiny_model(), see))
    assert len(made) == last


def test_an_interrupt_while_outlines_are_followed_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ALL
    counted = interrupt_after(2, before + ROUNDS + FRAMES, monkeypatch)
    with interrupted():
        find()
    assert counted == [before + 1, before + 2]


def test_frames_in_small_passes_give_the_same_masks() -> None:
    assert torch.equal(find(frames_per_pass=2)[0], find()[0])


def refused(socket: str, found: str, **inputs: Any) -> None:
    with pytest.raises(NodeError, match=found) as raised:
        find(**inputs)
    assert (raised.value.node, raised.value.socket) == ("Find Edit Mask", socket)


def test_the_source_prompt_is_no_edit_prompt() -> None:
    refused("positive", "says the same to the model", positive=SOURCE)


def test_frames_of_another_count_are_refused() -> None:
    refused("frames", f"2 images for {FRAMES} inverted", frames=pictures(2))


def test_another_model_is_refused() -> None:
    refused("model", "not the one the source was inverted with", model=tiny_model(9))
