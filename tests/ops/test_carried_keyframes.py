"""Edited keyframes carried along a motion that is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tokenflow_ops.carrying.alike import Alike
from tokenflow_ops.carrying.given import GivenKeyframes
from tokenflow_ops.carrying.motion import at, exposures, pixels
from tokenflow_ops.carrying.picking import covering
from tokenflow_ops.carrying.pictures import carry_pictures
from tokenflow_ops.measuring.metrics import psnr

SIDE, FRAMES, DEGREES = 64, 5, 40


def texture(seed: int) -> Tensor:
    """A smooth random plane, (3, SIDE, SIDE)."""
    noise = torch.rand(1, 3, 14, 14, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (SIDE, SIDE), mode="bicubic")[0].clamp(0, 1)


def turning(object_seed: int, degrees: float = DEGREES) -> Tensor:
    """A disc that turns by so much from frame to frame on a still ground, (FRAMES, 3, h, w)."""
    here, ground, disc, frames = pixels(SIDE, SIDE), texture(0), texture(object_seed), []
    middle = (SIDE - 1) / 2
    inside = (here - middle).norm(dim=0) < 22
    for frame in range(FRAMES):
        angle = math.radians(degrees * frame)
        c, s = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[c, -s], [s, c]])
        moved = middle + torch.einsum("ij,jhw->ihw", turn, here - middle)
        frames.append(torch.where(inside, at(disc, moved), ground))
    return torch.stack(frames)


def test_a_turning_object_takes_the_keyframes_texture_and_the_ground_stays_the_source() -> None:
    source, ideal = turning(1), turning(2)
    found = carry_pictures(source, ideal[[0]], [0])
    disc = (pixels(SIDE, SIDE) - (SIDE - 1) / 2).norm(dim=0) < 18
    error = (found.pictures - ideal)[1:]
    assert -10 * error[..., disc].square().mean().log10() > 24
    corner = error[..., :8, :8]
    assert corner.abs().max() < 1e-3
    assert torch.equal(found.pictures[0], ideal[0])


def test_what_a_keyframe_does_not_show_is_told() -> None:
    source = turning(1, degrees=0)
    source[3:, :, 4:20, 4:20] = texture(7)[:, 20:36, 20:36]
    edited = (1 - source)[[0, 1]]
    hidden = carry_pictures(source, edited, [0, 1]).hidden
    assert hidden[3, 6:18, 6:18].mean() > 0.9
    assert hidden[:3].max() == 0
    assert hidden[3, 30:, 30:].mean() < 0.05
    with_it = carry_pictures(source, (1 - source)[[0, 4]], [0, 4]).hidden
    assert with_it[3].mean() < 0.01


def test_what_no_keyframe_shows_is_made_as_what_looks_like_it() -> None:
    """A disc comes in from the left; half of it is outside of the only keyframe."""
    here, red = pixels(SIDE, SIDE), torch.tensor([1.0, 0.2, 0.2])[:, None, None]
    source, ideal, discs = [], [], []
    for frame in range(FRAMES):
        moved = here - torch.tensor([5.0 * frame, 32.0])[:, None, None]
        surface = at(texture(1), moved + 32) * 0.5 + 0.5
        discs.append(moved.norm(dim=0) < 20)
        ground = texture(0) * torch.tensor([0.3, 0.4, 0.8])[:, None, None]
        source.append(torch.where(discs[-1], surface * red, ground))
        ideal.append(torch.where(discs[-1], surface * red.flip(0), ground))
    found = carry_pictures(torch.stack(source), ideal[0][None], [0])
    error = (found.pictures - torch.stack(ideal))[FRAMES - 1]
    unseen = discs[-1] & (here[0] < 16)
    assert -10 * error[:, unseen].square().mean().log10() > 23.5
    assert found.hidden[FRAMES - 1][unseen].mean() > 0.5
    far = ~discs[-1] & (here[0] > 48)
    assert error[:, far].abs().max() < 0.01
    assert found.hidden[FRAMES - 1][far].max() == 0


def test_keyframes_of_another_shot_are_not_taken() -> None:
    source = torch.cat([turning(1, 5), turning(3, 5)])
    edited = torch.stack([torch.zeros(3, SIDE, SIDE), torch.ones(3, SIDE, SIDE)])
    found = carry_pictures(source, edited, [2, 6], shots=(0, FRAMES))
    assert found.pictures[:FRAMES].max() < 0.05
    assert found.pictures[FRAMES:].min() > 0.95
    with pytest.raises(ValueError, match="no keyframe"):
        carry_pictures(source, edited[:1], [2], shots=(0, FRAMES))


def test_the_light_of_each_frame_is_kept() -> None:
    source = turning(1, 0) * torch.linspace(1, 0.6, FRAMES)[:, None, None, None]
    light = exposures(source, (0,))
    assert light.tolist() == pytest.approx(torch.linspace(1, 0.6, FRAMES).tolist(), rel=0.03)
    edited = turning(2, 0) * torch.linspace(1, 0.6, FRAMES)[:, None, None, None]
    found = carry_pictures(source, edited[[0]], [0])
    assert psnr(found.pictures, edited)[1:].min() > 30


def test_a_slow_fade_is_seen_and_a_still_light_is_none() -> None:
    """From one frame to the next it changes by less than what is no change."""
    source = turning(1, 0)[:1].repeat(40, 1, 1, 1)
    fade = torch.linspace(1, 0.75, len(source))
    light = exposures(source * fade[:, None, None, None], (0, 20))
    wanted = torch.cat([fade[:20], fade[20:] / fade[20]])
    assert light.tolist() == pytest.approx(wanted.tolist(), rel=0.015)
    assert exposures(source, (0,)).tolist() == [1.0] * len(source)


def test_a_blurred_frame_is_moved_by_plain_flow() -> None:
    """Its pixels are found nowhere: what is most alike by chance would be crumbs."""
    source, ideal = turning(1, 8), turning(2, 8)
    wide = torch.nn.functional.pad(source[2:3], (6, 6, 0, 0), mode="replicate")
    source[2] = torch.nn.functional.avg_pool2d(wide, (1, 13), 1)[0]
    found = carry_pictures(source, ideal[[0]], [0]).pictures
    disc = (pixels(SIDE, SIDE) - (SIDE - 1) / 2).norm(dim=0) < 18
    decibels = [
        float(-10 * (found - ideal)[frame][:, disc].square().mean().log10()) for frame in (1, 2, 3)
    ]
    assert decibels[1] > 19.5, decibels
    assert min(decibels[0], decibels[2]) > 30, decibels


def test_means_are_of_what_is_alike() -> None:
    picture = torch.zeros(3, 16, 16)
    picture[:, :, 8:] = 0.5
    values = (picture[0] > 0).float() + 0.1 * torch.rand(
        16, 16, generator=torch.Generator().manual_seed(0)
    )
    found = Alike(picture).mean(values)
    assert found[:, :8].max() < 0.1
    assert found[:, 8:].min() > 1
    assert found[4:12, :8].std() < 0.5 * values[4:12, :8].std()


def test_agreement_brings_keyframes_together_and_none_keeps_them() -> None:
    source = turning(1, 5)
    edited = torch.stack([turning(2, 5)[1], turning(3, 5)[3]])
    kept = carry_pictures(source, edited, [1, 3])
    agreed = carry_pictures(source, edited, [1, 3], agreement=1.0)
    assert torch.equal(kept.pictures[[1, 3]], edited)
    disc = (pixels(SIDE, SIDE) - (SIDE - 1) / 2).norm(dim=0) < 18
    ideal = turning(3, 5)[1]
    apart = (edited[0] - ideal)[:, disc].abs().mean()
    assert (agreed.pictures[1] - ideal)[:, disc].abs().mean() < 0.3 * apart


def test_a_frame_is_picked_for_each_thing_that_appears_in_each_shot() -> None:
    clip = texture(0).repeat(12, 1, 1, 1)
    clip[4:8, :, 10:50, 10:50] = texture(1)[:, 10:50, 10:50]
    clip[8:] = texture(2)
    assert len(covering(clip[:4], 5)) == 1
    first, second, third = covering(clip, 5, shots=(0, 8))
    assert {first < 4, second < 4} == {True, False}
    assert third >= 8
    assert len(covering(clip[:8], most=1)) == 1


def test_numbers_must_be_frames_in_order() -> None:
    latents, hidden = torch.zeros(3, 4, 2, 2), torch.zeros(3, 16, 16)
    assert GivenKeyframes((0, 2), latents, hidden).numbers == (0, 2)
    for wrong in ((), (2, 0), (0, 3), (1, 1)):
        with pytest.raises(ValueError, match="ascending"):
            GivenKeyframes(wrong, latents, hidden)
    with pytest.raises(ValueError, match="masks"):
        GivenKeyframes((0,), latents, hidden[:2])
