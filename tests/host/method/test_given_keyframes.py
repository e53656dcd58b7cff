"""Keyframes that were edited elsewhere: kept as they are, and the rest computed from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.keyframes.carry import CarryKeyframes
from tokenflow_pack.nodes.keyframes.pick import BY_NUMBER, EVERY_NTH, PickKeyframes
from tokenflow_pack.tokenflow_ops.carrying.given import GivenKeyframes
from torch import Tensor

from ..helpers import (
    FRAMES,
    SIZE,
    applied,
    call,
    edit,
    matched,
    pictures,
    relative_error,
    stock,
    tiny_model,
    untouched,
)
from ..once import once_a_module
from ..tiny_models import moving_clip

KEYFRAME = 1
HIDDEN = slice(2, 6)  # rows and columns of latent cells


class Shrinking:
    """An autoencoder of four channels, a latent cell the mean of 8 x 8 pixels."""

    def encode(self, pixels: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small[:, :1]], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1)


@once_a_module
def clip(seed: int = 3) -> Tensor:
    noise = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(seed))
    return moving_clip(FRAMES, *SIZE)["samples"] + 0.5 * noise


def given(latents: Tensor, hides: bool = True) -> GivenKeyframes:
    hidden = torch.zeros(FRAMES, *(8 * side for side in SIZE))
    if hides:
        hidden[:, 16:48, 16:48] = 1
    hidden[KEYFRAME] = 0
    return GivenKeyframes((KEYFRAME,), latents, hidden)


def apart(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).abs().amax(1)


@pytest.mark.parametrize("inputs", [{}, {"start": 0.6}], ids=["whole path", "part of it"])
def test_what_keyframes_show_stays_and_the_rest_is_computed(inputs: dict[str, Any]) -> None:
    found = apart(edit(keyframes=given(clip()), **inputs), clip())
    assert found[KEYFRAME].max() < 1e-4
    inside = found[:, HIDDEN, HIDDEN].clone()
    found[:, HIDDEN, HIDDEN] = 0
    assert found.max() < 1e-4
    assert inside[0].mean() > 0.05
    assert inside[2].mean() > 0.05


def test_frames_take_the_tokens_of_the_given_keyframe_and_of_no_other() -> None:
    other, elsewhere = clip().clone(), clip().clone()
    other[KEYFRAME] = clip(4)[KEYFRAME]
    # What is given of a frame between keyframes, far from what is hidden, gives no tokens.
    first = edit(keyframes=given(clip()))
    second = edit(keyframes=given(other))
    inside = (slice(2, 4), slice(None), HIDDEN, HIDDEN)
    assert relative_error(second[inside], first[inside]) > 0.01
    elsewhere[0] = clip(4)[0]
    third = edit(keyframes=given(elsewhere))
    assert relative_error(third[inside], first[inside]) < 1e-5


def test_without_anything_hidden_the_clip_is_as_given() -> None:
    assert torch.allclose(edit(keyframes=given(clip(), hides=False)), clip(), atol=1e-5)


def test_any_sampler_keeps_them_on_a_patched_model() -> None:
    with untouched(tiny_model()):
        found = apart(stock(applied(keyframes=given(clip()))), clip())
    assert found[KEYFRAME].max() < 1e-4
    found[:, HIDDEN, HIDDEN] = 0
    assert found.max() < 1e-4


def test_another_clips_keyframes_are_refused() -> None:
    for inputs in ({"latents": clip()[:, :, :4]}, {"latents": clip()[:-1]}):
        wrong = inputs["latents"]
        with pytest.raises(NodeError, match="keyframes"):
            edit(keyframes=GivenKeyframes((0,), wrong, torch.zeros(len(wrong), 8, 8)))


def test_matches_of_these_keyframes_are_not_searched_again() -> None:
    from tokenflow_pack.host.keyframes.given import matched_to

    found = matched_to("Node", matched(), (KEYFRAME, 3))
    assert [step.keyframes.tolist() for step in found.steps] == [[KEYFRAME, 3]] * len(found.steps)
    assert matched_to("Node", found, (KEYFRAME, 3)) is found
    assert found.shots == matched().shots


def test_the_nodes_pick_carry_and_hand_over() -> None:
    frames = pictures()
    keyframes, numbers = call(
        PickKeyframes.execute, frames, choice=BY_NUMBER, numbers="2,0", cuts="none"
    )
    assert numbers == "0, 2"
    assert torch.equal(keyframes, frames[[0, 2]])
    chosen = call(PickKeyframes.execute, frames, choice=EVERY_NTH, every=2, cuts="none")[1]
    assert chosen == ", ".join(str(number) for number in range(0, FRAMES, 2))
    handed, made, hidden = call(
        CarryKeyframes.execute,
        frames,
        1 - keyframes,
        numbers=numbers,
        vae=Shrinking(),
        cuts="none",
    )
    assert torch.allclose(made[[0, 2]], 1 - keyframes, atol=1e-6)
    seen = hidden[1] == 0
    assert (made[1] - (1 - frames[1]))[seen].abs().mean() < 0.05
    assert handed.numbers == (0, 2)
    assert torch.allclose(handed.latents, Shrinking().encode(made), atol=1e-6)
    backwards = call(
        CarryKeyframes.execute, frames, (1 - keyframes).flip(0), numbers="2 0", cuts="none"
    )
    assert backwards[0] is None
    assert torch.equal(backwards[1], made)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [("0, 99", "99"), ("1 1", "twice"), ("", "no frame number"), ("first", "first")],
)
def test_numbers_that_are_no_frames_are_refused(numbers: str, words: str) -> None:
    with pytest.raises(NodeError, match=words):
        call(PickKeyframes.execute, pictures(), choice=BY_NUMBER, numbers=numbers, cuts="none")


def test_pictures_that_do_not_fit_are_refused() -> None:
    frames = pictures()
    with pytest.raises(NodeError, match="1 pictures for 2 numbers"):
        call(CarryKeyframes.execute, frames, frames[:1], numbers="0 1", cuts="none")
    with pytest.raises(NodeError, match="pixels"):
        call(CarryKeyframes.execute, frames, frames[:1, :, :16], numbers="0", cuts="none")
    larger = frames[:1].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert call(CarryKeyframes.execute, frames, larger, cuts="none")[1].shape == frames.shape
