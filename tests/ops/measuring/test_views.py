"""What pictures for looking show: principal components, frames rebuilt,
similarity and motion of matches.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenflow_ops import Correspondences, build_correspondences
from tokenflow_ops.measuring import views
from tokenflow_ops.measuring.views import (
    ColourBasis,
    feature_colours,
    match_motion,
    match_similarity,
    motion_colours,
    rebuild,
)

from ..made import LAYER, ONLY, random, source_of

# Frames, interval, and rows and columns of tokens: one frame, one token, odd and prime sizes.
CLIPS = [(1, 8, (3, 5)), (5, 1, (1, 1)), (7, 3, (5, 7)), (11, 4, (2, 13)), (3, 2, (8, 4))]


def matched(features: Tensor, grid: tuple[int, int], interval: int) -> Correspondences:
    return build_correspondences(source_of(features, grid), interval, backend="torch")


def rolled(frames: int, grid: tuple[int, int], width: int) -> Tensor:
    """A random plane (frames, rows, columns, width) that moves right by a
    token a frame, round and round.
    """
    plane = random(0, *grid, width)
    return torch.stack([plane.roll(i, 1) for i in range(frames)])


def test_axes_are_those_of_most_variance_up_to_their_sign() -> None:
    axes = torch.linalg.qr(random(0, 6, 6)).Q.T
    spread = torch.tensor([9.0, 5.0, 3.0, 0.5, 0.2, 0.1])
    tokens = random(1, 2000, 6) * spread @ axes + 7
    found = ColourBasis.of(tokens.half())
    assert (found.axes * axes[:3]).sum(1).abs().min() > 0.99
    torch.testing.assert_close(found.axes @ found.axes.T, torch.eye(3), atol=1e-5, rtol=0)
    centred = tokens - tokens.mean(0)
    _, _, wanted = torch.linalg.svd(centred, full_matrices=False)
    assert (found.axes * wanted[:3]).sum(1).abs().min() > 0.999
    colours = found.colours(tokens)
    inside = (colours > 0) & (colours < 1)
    assert inside.float().mean(0).tolist() == pytest.approx([0.96] * 3, abs=0.01)
    flipped = ColourBasis.of(tokens.flip(0)).colours(tokens)
    torch.testing.assert_close(flipped, colours, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("frames", "interval", "grid"), CLIPS)
def test_a_moving_plane_keeps_its_colours(
    frames: int, interval: int, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(rolled(frames, grid, 4).flatten(1, 2), grid)
    counted = []
    at_once = feature_colours(source, ONLY, 0, torch.arange(frames), lambda: counted.append(1))
    assert at_once.shape == (frames, 3, *grid)
    assert len(counted) == frames
    for i, picture in enumerate(at_once):
        torch.testing.assert_close(picture, at_once[0].roll(i, 2))
    monkeypatch.setattr(views, "BLOCK_FRAMES", 2)
    in_blocks = feature_colours(source, ONLY, 0, torch.arange(frames))
    for i, picture in enumerate(in_blocks):
        torch.testing.assert_close(picture, in_blocks[0].roll(i, 2))
    some = feature_colours(source, ONLY, 0, torch.tensor([frames - 1]))
    assert some.shape == (1, 3, *grid)


def test_features_that_are_not_stored_are_computed_for_these_frames_and_this_step() -> None:
    source = source_of(random(0, 5, 6, 4), (2, 3))
    asked = []

    def compute(layers: object, steps: object, consume: object, frames: Tensor) -> None:
        asked.append((layers, steps, frames.tolist()))
        consume(0, {"other": random(0, len(frames), 6, 4)}, 0, len(frames))  # type: ignore[operator]

    source.compute = compute
    assert source.at(0, ("other",), torch.tensor([1, 4]))["other"].shape == (2, 6, 4)
    assert asked == [(("other",), [0], [1, 4])]
    stored = source.at(0, ONLY, torch.tensor([3]))[LAYER]
    assert torch.equal(stored, random(0, 5, 6, 4)[3:4])


@pytest.mark.parametrize(("frames", "interval", "grid"), CLIPS)
@pytest.mark.parametrize("patch", [1, 3])
def test_a_clip_that_moves_by_whole_tokens_is_rebuilt_exactly(
    frames: int, interval: int, grid: tuple[int, int], patch: int
) -> None:
    found = matched(rolled(frames, grid, 8).flatten(1, 2), grid, interval)
    images = random(0, 3, grid[0] * patch, grid[1] * patch)
    clip = torch.stack([images.roll(i * patch, 2) for i in range(frames)])
    rebuilt = rebuild(clip.__getitem__, found.steps[0], ONLY, grid, torch.arange(frames))
    torch.testing.assert_close(rebuilt, clip)


@pytest.mark.parametrize(("frames", "interval", "grid"), CLIPS)
def test_similarity_is_one_where_matches_have_the_same_features(
    frames: int, interval: int, grid: tuple[int, int]
) -> None:
    for features in (
        rolled(frames, grid, 8).flatten(1, 2),
        random(0, 1, grid[0] * grid[1], 8).expand(frames, -1, -1),
    ):
        found = matched(features, grid, interval)
        similarity = match_similarity(found.features, found.steps[0], ONLY, 0, torch.arange(frames))
        torch.testing.assert_close(similarity, torch.ones(frames, *grid))


def test_similarity_is_the_weighted_cosine_of_both_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    features, counted = random(0, 7, 6, 8), []
    monkeypatch.setattr(views, "COMPARED_FRAMES", 2)
    found = matched(features, (2, 3), 3)
    step = found.steps[0]
    shown = torch.tensor([0, 2, 3, 6])
    similarity = match_similarity(
        found.features, step, ONLY, 0, shown, lambda: counted.append(1)
    ).flatten(1)
    assert len(counted) == 4
    near, (past, future) = step.near.of(shown), step.tokens(ONLY, shown)
    for i, frame in enumerate(shown.tolist()):
        for p in range(6):
            one, other = (
                torch.cosine_similarity(
                    features[frame, p], features[step.keyframes[side[i]], int(tokens[i, p])], dim=0
                )
                for side, tokens in ((near.past, past), (near.future, future))
            )
            assert similarity[i, p] == pytest.approx(
                float((1 - near.weight[i]) * one + near.weight[i] * other), abs=1e-5
            )
    assert similarity.min() < 0.9


@pytest.mark.parametrize(("frames", "interval", "grid"), CLIPS)
def test_motion_goes_forwards_in_time_to_the_nearest_keyframe(
    frames: int, interval: int, grid: tuple[int, int]
) -> None:
    found = matched(rolled(frames, grid, 8).flatten(1, 2), grid, interval)
    step = found.steps[0]
    motion = match_motion(step, ONLY, grid, torch.arange(frames))
    columns = torch.arange(grid[1])
    for frame in range(frames):
        keyframe = min(
            step.keyframes.tolist(), key=lambda known, frame=frame: (abs(known - frame), -known)
        )
        if frame == keyframe:
            assert not motion[frame].any()
        there = (columns + keyframe - frame) % grid[1]
        assert torch.equal(
            motion[frame, 0],
            ((there - columns) * (1 if keyframe > frame else -1)).float().expand(grid),
        )
        assert not motion[frame, 1].any()


def test_motion_is_white_at_rest_and_red_to_the_right() -> None:
    motion = torch.zeros(1, 2, 2, 2)
    assert torch.equal(motion_colours(motion), torch.ones(1, 3, 2, 2))
    motion[0, 0, 0] = 3.0
    colours = motion_colours(motion)
    torch.testing.assert_close(colours[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(colours[0, :, 1], torch.ones(3, 2))
    motion[0, :, 0] = torch.tensor([0.0, 1.5])[:, None]  # half as far, downwards
    motion[0, 0, 1] = 3.0
    colours = motion_colours(motion)
    assert colours[0, 1, 0, 0] > colours[0, 2, 0, 0]
    assert 0.3 < colours[0].amin(0)[0, 0] < 0.7
