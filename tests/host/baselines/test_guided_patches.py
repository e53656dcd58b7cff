"""Guided patches and their blend, which the paper's table makes frames between keyframes with."""

from __future__ import annotations

import pytest
import torch
from tokenflow_pack.tokenflow_ops.carrying.motion import pixels
from torch import Tensor

from bench.tools.keyframes import blending, guided
from bench.tools.keyframes.blending import between_keyframes, blended, chosen, with_slopes
from bench.tools.keyframes.guided import HALF, Made, improved, patches_of, synthesised, voted

from ..helpers import pictures

FRAMES, SIZE = 4, (8, 10)


def plane() -> Tensor:
    """A clip (N, 3, 64, 80) that moves left by 8 pixels a frame."""
    return pictures(FRAMES, SIZE).movedim(-1, 1).contiguous()


def edited(clip: Tensor) -> Tensor:
    return 1 - clip[:, [1, 2, 0]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def decibels(one: Tensor, other: Tensor) -> float:
    return float(-10 * (one - other).square().mean().log10())


def test_the_mean_of_overlapping_patches_is_its_formula() -> None:
    height, width = 5, 7
    style = random(3, height, width)
    found = torch.stack([random(height, width) * width, random(height, width, seed=1) * height])
    found = found.floor()
    wanted = torch.zeros_like(style)
    for row in range(height):
        for column in range(width):
            for y in range(-HALF, HALF + 1):
                for x in range(-HALF, HALF + 1):
                    # The patch whose middle is so far up and left lies over this pixel.
                    middle = min(max(row - y, 0), height - 1), min(max(column - x, 0), width - 1)
                    moved = found[:, middle[0], middle[1]] - torch.tensor([middle[1], middle[0]])
                    there = torch.tensor([column, row]) + moved
                    from_row = int(there[1].clamp(0, height - 1))
                    from_column = int(there[0].clamp(0, width - 1))
                    wanted[:, row, column] += style[:, from_row, from_column] / 25
    assert torch.allclose(voted(style, found), wanted, atol=1e-6)


def test_better_positions_are_found_and_told_by_their_difference() -> None:
    look = random(3, 16, 20)
    moved = look.roll(1, 2)  # every pixel lies one to the left in the other one
    own = pixels(16, 20)
    found, error = improved(own, patches_of(look), patches_of(moved))
    inner = (slice(HALF, -HALF), slice(HALF + 1, -HALF))
    assert torch.equal((found - own)[0][inner], torch.full((12, 15), -1.0))
    assert torch.equal((found - own)[1][inner], torch.zeros(12, 15))
    assert float(error[inner].abs().max()) == 0
    unmoved = (patches_of(look) - patches_of(moved)).square().sum(1).view(16, 20)
    assert float((unmoved - error).min()) >= 0
    assert float(error.mean()) < float(unmoved.mean())


def test_guides_count_by_their_weights() -> None:
    dark, light = torch.full((3, 6, 8), 0.2), torch.full((3, 6, 8), 0.5)
    places = torch.zeros(2, 6, 8)

    def apart(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().sum(0)

    usual = guided.guided(dark, places, dark)
    colours = apart(guided.guided(light, places, dark), usual)
    assert torch.allclose(colours, torch.tensor(6 * 0.3**2))
    before = apart(guided.guided(dark, places, light), usual)
    assert torch.allclose(before, torch.tensor(0.5 * 0.3**2))
    moved = apart(guided.guided(dark, places + 0.3, dark), usual)
    assert torch.allclose(moved, torch.tensor(2 * 0.3**2 * 2 / 3))  # two channels of three
    spot = dark.clone()
    spot[:, 3, 4] += 0.1
    edges = guided.guided(spot, places, dark)[3:6] / (0.5 / 3) ** 0.5
    wanted = torch.zeros_like(edges)
    wanted[:, 3, 4] = 0.4
    assert torch.allclose(edges, wanted, atol=1e-6)


def test_the_same_guides_give_the_keyframe_itself() -> None:
    style, guides = random(3, 70, 90), random(11, 70, 90, seed=1)
    made = synthesised(style, guides, guides)
    assert torch.allclose(made.picture, style, atol=1e-6)
    assert float(made.error.max()) < 1e-9


def test_an_edited_keyframe_follows_the_source() -> None:
    clip = plane()
    wanted = edited(clip)
    made = guided.propagated(clip, wanted[0], [0, 1, 2])
    for number, one in enumerate(made, 1):
        # What has come in on the right is not in the keyframe.
        seen = (..., slice(0, 80 - 8 * number - 4))
        held = decibels(wanted[0][seen], wanted[number][seen])
        assert decibels(one.picture[seen], wanted[number][seen]) > held + 10
        assert float(one.error[:, 80 - 8 * number :].mean()) > 3 * float(one.error[seen].mean())


def test_frames_between_are_of_both_keyframes_and_these_stay() -> None:
    clip = plane()
    wanted, numbers = edited(clip), [0, 3]
    made = between_keyframes(clip, wanted[numbers], numbers)
    assert torch.equal(made[numbers], wanted[numbers])
    for number in (1, 2):
        held = decibels(wanted[0], wanted[number])
        assert decibels(made[number], wanted[number]) > held + 10


def test_the_less_different_side_is_taken_the_nearer_the_keyframe_the_sooner() -> None:
    one, other = (Made(torch.zeros(3, 1, 3), torch.tensor([e])) for e in ([9.0, 1, 0], [1.0, 1, 9]))
    assert chosen(one, other, 0.0).tolist() == [[False, False, False]]
    assert chosen(one, other, 0.25).tolist() == [[True, False, False]]
    assert chosen(one, other, 0.75).tolist() == [[True, True, False]]


def test_what_was_taken_of_the_other_keyframe_once_is_taken_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, taken, corner = plane(), list[Tensor](), torch.zeros(64, 80).bool()
    corner[:, 40:48] = True

    def choose(one: Made, other: Made, share: float) -> Tensor:
        return corner & (share == 0)

    def blend(one: Tensor, other: Tensor, where: Tensor, share: float) -> Tensor:
        taken.append(where)
        return one

    monkeypatch.setattr(blending, "chosen", choose)
    monkeypatch.setattr(blending, "blended", blend)
    between_keyframes(clip, edited(clip)[[0, 3]], [0, 3])
    assert torch.equal(taken[0], corner)
    moved = corner.roll(-8, 1)  # as the source moves
    assert float((taken[1] == moved)[8:-8].float().mean()) > 0.97


@pytest.mark.parametrize("weight", [0.5, 2.5])
def test_slopes_are_fused_as_least_squares_say(weight: float) -> None:
    height, width = 4, 5
    values = random(height, width).double()
    down = random(height - 1, width, seed=1).double()
    right = random(height, width - 1, seed=2).double()
    rows, wanted = [torch.eye(height * width).double()], [values.flatten()]
    for y in range(height):
        for x in range(width):
            for below, beside, slope in ((1, 0, down), (0, 1, right)):
                if y + below < height and x + beside < width:
                    row = torch.zeros(1, height * width).double()
                    row[0, y * width + x] = -weight
                    row[0, (y + below) * width + x + beside] = weight
                    rows.append(row)
                    wanted.append(weight * slope[y, x][None])
    plain = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)[:, None]).solution
    found = with_slopes(values, down, right, weight)
    assert torch.allclose(found.flatten(), plain[:, 0], atol=1e-9)


def test_a_blend_of_equals_is_the_same_and_of_two_keeps_the_taken_ones_edges() -> None:
    one, other = 0.2 + 0.6 * random(3, 24, 24), 0.2 + 0.6 * random(3, 24, 24, seed=1)
    nowhere, everywhere = torch.zeros(24, 24).bool(), torch.ones(24, 24).bool()
    assert torch.allclose(blended(one, one, everywhere, 0.3), one, atol=2e-3)
    assert torch.allclose(blended(one, other, nowhere, 0.0), one, atol=2e-3)
    middle = blended(one, other, nowhere, 0.5)
    assert decibels(middle, one) > decibels(middle, other) + 6
    assert decibels(middle, one) > decibels((one + other) / 2, one) + 3


def test_a_coarser_level_finds_what_lies_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    style = random(3, 12, 16)
    style = torch.nn.functional.interpolate(style[None], scale_factor=8, mode="bicubic")[0]
    moved = style.roll(24, 2)
    made = synthesised(style, 3 * style, 3 * moved)
    assert decibels(made.picture[..., 28:-4], moved[..., 28:-4]) > 30
    monkeypatch.setattr(guided, "COARSEST", 200)  # all patches at full size
    every = synthesised(style, 3 * style, 3 * moved)
    assert decibels(made.picture, every.picture) > 25
