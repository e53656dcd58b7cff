"""Intervals by content, on clips of which it is known when they change."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops import build_correspondences, nearest_tokens
from tokenflow_ops.keyframes import interval_starts
from tokenflow_ops.matching.intervals import JOINED, intervals_by_content
from tokenflow_ops.shards import Alone

from ..made import ONLY, random, source_of

ROWS, COLUMNS = 8, 16


def divided(frames: Tensor, interval: int, **choices: Any) -> tuple[int, ...]:
    """frames: features of every place, (N, rows, columns, C)."""
    grid = frames.shape[1], frames.shape[2]
    return intervals_by_content(source_of(frames.flatten(1, 2), grid), interval, **choices)


def panned(count: int, speed: int) -> Tensor:
    """A ground that moves on by so many columns a frame."""
    ground = random(1, ROWS, COLUMNS + speed * count, 12)
    return torch.stack([ground[:, speed * i : speed * i + COLUMNS] for i in range(count)])


def with_object(rows: int, columns: int, count: int = 16) -> Tensor:
    """A still ground before which something is another thing in every frame."""
    frames = random(2, ROWS, COLUMNS, 12).repeat(count, 1, 1, 1)
    frames[:, 2 : 2 + rows, 5 : 5 + columns] = random(3, count, rows, columns, 12)
    return frames


@settings(deadline=None, max_examples=40)
@given(
    same=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    interval=st.integers(1, 11),
    data=st.data(),
)
def test_intervals_are_joined_within_shots_and_none_becomes_too_long(
    same: list[int], interval: int, data: st.DataObject
) -> None:
    """same: for how many frames the picture stays before it is another one."""
    pictures = [random(i, ROWS, COLUMNS, 8).repeat(n, 1, 1, 1) for i, n in enumerate(same)]
    frames = torch.cat(pictures)
    cuts = data.draw(st.sets(st.integers(1, max(1, len(frames) - 1)), max_size=3))
    shots = [0, *sorted(cut for cut in cuts if cut < len(frames))]
    starts = divided(frames, interval, shots=shots)
    assert set(shots) <= set(starts)
    assert set(starts) <= set(interval_starts(len(frames), interval, shots).tolist())
    assert list(starts) == sorted(set(starts))
    for first, stop in pairwise([*starts, len(frames)]):
        assert stop - first <= JOINED * interval
    assert starts == divided(frames, interval, shots=shots)


def test_a_still_clip_has_as_few_keyframes_as_may_be() -> None:
    still = random(0, ROWS, COLUMNS, 8).repeat(75, 1, 1, 1)
    assert divided(still, 8) == (0, 32, 64)
    assert divided(still, 8, shots=(0, 10)) == (0, 10, 42, 74)


def test_frames_that_show_different_things_share_none() -> None:
    frames = random(0, 6, ROWS, COLUMNS, 8)
    assert divided(frames, 1) == (0, 1, 2, 3, 4, 5)
    assert divided(frames.repeat_interleave(5, 0), 5) == (0, 5, 10, 15, 20, 25)
    # One interval that is the same throughout joins with none that is not.
    assert divided(frames.repeat_interleave(8, 0), 4) == (0, 8, 16, 24, 32, 40)


def test_a_pan_is_divided_by_how_much_of_the_picture_is_left() -> None:
    # After 7 frames 9 of 16 columns are left, after 15 one.
    assert divided(panned(32, 1), 4) == (0, 8, 16, 24)
    assert divided(panned(32, 1), 8) == (0, 8, 16, 24)
    assert divided(panned(16, 2), 2) == (0, 4, 8, 12)  # 10 columns after 3


def test_a_still_ground_does_not_hide_what_changes_before_it() -> None:
    assert divided(with_object(2, 3), 8) == (0,)  # 5 % of the picture
    assert divided(with_object(4, 8), 8) == (0, 8)


def test_one_frame() -> None:
    assert divided(random(0, 1, ROWS, COLUMNS, 8), 8) == (0,)


def test_machines_that_share_a_clip_take_what_the_first_one_finds() -> None:
    class Second(Alone):
        def once(self, make: Any) -> Any:
            return False

    still = random(0, ROWS, COLUMNS, 8).repeat(16, 1, 1, 1)
    assert divided(still, 4) == (0,)
    assert divided(still, 4, shards=Second()) == (0, 4, 8, 12)


def test_it_can_be_stopped() -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        divided(random(0, 9, ROWS, COLUMNS, 8), 4, check=stop)


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    fixed=st.booleans(),
    cut=st.integers(0, 7),
)
def test_matches_in_uneven_intervals_are_those_of_the_plain_search(
    lengths: list[int], fixed: bool, cut: int
) -> None:
    starts = torch.tensor([0, *lengths]).cumsum(0)
    frames, begins = int(starts[-1]), starts[:-1].tolist()
    shots = (0, begins[cut]) if 0 < cut < len(begins) else (0,)
    features = random(5, frames, 3, 8)
    found = build_correspondences(
        source_of(features), 8, 1, fixed, "torch", shots=shots, starts=begins
    )
    assert found.starts == tuple(begins)
    (step,) = found.steps
    assert len(step.keyframes) == len(begins)
    for side, near in zip(step.tokens(ONLY), (step.near.past, step.near.future), strict=True):
        for i in range(frames):
            keyframe = int(step.keyframes[near[i]])
            assert (keyframe >= shots[-1]) == (i >= shots[-1])
            plain = nearest_tokens(features[i][None], features[keyframe])[0]
            assert torch.equal(side[i].long(), torch.arange(3) if keyframe == i else plain)
