"""Keyframe draws, and each frame's two neighbours among them."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflow_ops import Windows, attended_keyframes, choose_keyframes, neighbours

frames_of = st.integers(1, 101)
intervals = st.integers(1, 40)
seeds = st.integers(0, 2**64 - 1)


@given(frames=frames_of, interval=intervals, seed=seeds, step=st.integers(0, 999))
def test_one_keyframe_in_every_interval(frames: int, interval: int, seed: int, step: int) -> None:
    keyframes = choose_keyframes(frames, interval, seed, step).tolist()
    assert len(keyframes) == math.ceil(frames / interval)
    for number, keyframe in enumerate(keyframes):
        assert number * interval <= keyframe < min((number + 1) * interval, frames)


def test_draws_depend_on_seed_and_step_alone() -> None:
    first = choose_keyframes(40, 8, 5, 3)
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(first, choose_keyframes(40, 8, 5, 3))
    drawn = {
        tuple(choose_keyframes(40, 8, seed, step).tolist())
        for seed in range(10)
        for step in range(10)
    }
    assert len(drawn) > 95


def test_every_frame_gets_its_turn() -> None:
    counts = torch.zeros(11)
    for step in range(2000):
        counts[choose_keyframes(11, 8, 0, step)] += 1
    # 8 frames share the first interval, 3 the second one.
    assert (counts[:8] / 2000 - 1 / 8).abs().max() < 0.03
    assert (counts[8:] / 2000 - 1 / 3).abs().max() < 0.04


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    interval=st.integers(1, 9),
    seed=seeds,
)
def test_one_keyframe_in_every_uneven_interval_and_no_more_different_ones_than_usual(
    lengths: list[int], interval: int, seed: int
) -> None:
    borders = [0, *accumulate(lengths)]
    starts = torch.tensor(borders[:-1])
    drawn = torch.stack(
        [choose_keyframes(borders[-1], interval, seed, step, starts) for step in range(60)]
    )
    for first, stop, own in zip(borders, borders[1:], drawn.T, strict=False):
        assert bool(((own >= first) & (own < stop)).all())
        assert len(own.unique()) <= interval


def test_a_long_intervals_keyframes_are_drawn_from_all_of_it() -> None:
    starts = torch.tensor([0, 24])
    drawn = torch.cat([choose_keyframes(32, 8, 0, step, starts) for step in range(400)])
    assert drawn[drawn < 24].unique().tolist() == list(range(0, 24, 3))
    assert drawn[drawn >= 24].unique().tolist() == list(range(24, 32))


@pytest.mark.parametrize(("frames", "interval"), [(0, 8), (8, 0), (-1, 1)])
def test_nothing_to_draw_from_is_an_error(frames: int, interval: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        choose_keyframes(frames, interval, 0, 0)


@given(data=st.data(), frames=frames_of)
def test_neighbours_are_the_closest_on_either_side(data: st.DataObject, frames: int) -> None:
    keyframes = sorted(data.draw(st.sets(st.integers(0, frames - 1), min_size=1, max_size=9)))
    near = neighbours(frames, torch.tensor(keyframes))
    for i in range(frames):
        before = [k for k in keyframes if k <= i]
        after = [k for k in keyframes if k >= i]
        past = max(before) if before else min(after)
        future = min(after) if after else past
        assert keyframes[near.past[i]] == past
        assert keyframes[near.future[i]] == future
        if past != future:
            assert float(near.weight[i]) == pytest.approx(
                abs(i - past) / (abs(i - past) + abs(future - i))
            )


def test_weights_follow_the_true_distances() -> None:
    near = neighbours(8, torch.tensor([1, 5]))
    assert near.past.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert near.future.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert near.weight[2:5].tolist() == [0.25, 0.5, 0.75]
    assert ((near.weight >= 0) & (near.weight <= 1)).all()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**64 - 1), st.data())
def test_a_frame_attends_to_the_keyframes_closest_in_time(
    frames: int, interval: int, seed: int, data: st.DataObject
) -> None:
    keyframes = choose_keyframes(frames, interval, seed, 0)
    limit = data.draw(st.integers(1, len(keyframes)))
    found = attended_keyframes(torch.arange(frames), keyframes, limit)
    for frame, positions in enumerate(found.tolist()):
        by_distance = sorted(
            range(len(keyframes)), key=lambda k: (abs(int(keyframes[k]) - frame), k)
        )
        assert positions == sorted(by_distance[:limit])


@settings(deadline=None)
@given(keyframes=st.integers(1, 200), limit=st.integers(1, 40))
def test_windows_hold_every_keyframe_once_and_attend_to_no_more_than_the_limit(
    keyframes: int, limit: int
) -> None:
    windows = Windows.of(keyframes, limit)
    assert [position for own in windows.own for position in own] == list(range(keyframes))
    assert (len(windows.own) == 1) == (keyframes <= limit)
    assert len(set(windows.anchors.tolist())) == len(windows.anchors)
    for own in windows.own:
        apart = windows.anchors[windows.elsewhere(own)].tolist()
        attended = [*apart, *windows.before(own), *own]
        assert len(set(attended)) == len(attended) <= limit
        assert set(windows.anchors.tolist()) <= set(attended)
