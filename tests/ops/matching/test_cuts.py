"""Where another shot begins, and that nothing is matched or edited jointly across it."""

from __future__ import annotations

import pytest
import torch

from tokenflow_ops import choose_keyframes, neighbours
from tokenflow_ops.keyframes import interval_starts, shot_windows
from tokenflow_ops.matching.cuts import find_cuts


def shot(frames: int, seed: int, speed: int = 1, size: int = 20) -> torch.Tensor:
    """A smooth texture that moves sideways, (N, 4, size, size), with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(1, 4, size + 2, size + 2 + speed * frames, generator=generator)
    plane = 2 * torch.nn.functional.avg_pool2d(plane, 3, 1)[0]
    moved = torch.stack([plane[:, :, speed * i : speed * i + size] for i in range(frames)])
    return moved + 0.02 * torch.randn(moved.shape, generator=generator)


@pytest.mark.parametrize("lengths", [(5, 7), (9, 4, 6), (2, 9), (17, 13)])
def test_shots_begin_where_they_do(lengths: tuple[int, ...]) -> None:
    clip = torch.cat([shot(length, seed) for seed, length in enumerate(lengths)])
    wanted = [0, *torch.tensor(lengths).cumsum(0)[:-1].tolist()]
    assert list(find_cuts(clip)) == wanted


@pytest.mark.parametrize("speed", [0, 1, 5])
def test_motion_is_no_cut(speed: int) -> None:
    assert find_cuts(shot(12, 0, speed)) == (0,)


def test_another_shot_of_the_same_things_is_a_cut() -> None:
    """Most of its patches are in the shot before as well, but elsewhere."""
    generator = torch.Generator().manual_seed(5)
    tiles = shot(1, 6, size=42)[0].unfold(1, 6, 6).unfold(2, 6, 6).flatten(1, 2)  # (4, 49, 6, 6)

    def laid(order: torch.Tensor) -> torch.Tensor:
        plane = tiles[:, order].unflatten(1, (7, 7)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return torch.stack([plane[:, :30, i : i + 30] for i in range(8)])

    clip = torch.cat([laid(torch.randperm(49, generator=generator)) for _ in range(2)])
    assert find_cuts(clip) == (0, 8)


def test_neither_is_what_enters_nor_an_odd_frame_nor_noise() -> None:
    clip = shot(12, 0)
    clip[5:, :, 4:14, 4:14] = 3.0
    assert find_cuts(clip) == (0,)
    odd = shot(12, 1)
    odd[6] = torch.randn(odd[6].shape, generator=torch.Generator().manual_seed(3))
    assert find_cuts(odd) == (0,)
    noise = torch.randn(12, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    assert find_cuts(noise) == (0,)
    assert find_cuts(torch.zeros(8, 4, 16, 16)) == (0,)


@pytest.mark.parametrize(("frames", "size"), [(1, 8), (3, 8), (9, 2), (4, 3)])
def test_small_clips_have_none(frames: int, size: int) -> None:
    assert find_cuts(torch.randn(frames, 4, size, size)) == (0,)


def test_large_latents_are_searched_smaller() -> None:
    clip = torch.cat([shot(4, 0, size=130), shot(4, 1, size=130)])
    assert find_cuts(clip) == (0, 4)


def test_it_can_be_stopped() -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        find_cuts(shot(6, 0), check=stop)


SHOTS = (0, 5, 6, 17)


def test_intervals_begin_anew_and_nobody_follows_a_keyframe_of_another_shot() -> None:
    frames, interval = 24, 4
    starts = interval_starts(frames, interval, SHOTS).tolist()
    assert starts == [0, 4, 5, 6, 10, 14, 17, 21]
    for step in range(20):
        keyframes = choose_keyframes(frames, interval, 3, step, torch.tensor(starts))
        assert all(
            a <= k < b for a, k, b in zip(starts, keyframes, [*starts[1:], frames], strict=True)
        )
        near = neighbours(frames, keyframes, shots=SHOTS)
        of = torch.searchsorted(torch.tensor(SHOTS), torch.arange(frames), right=True)
        for side in (near.past, near.future):
            assert torch.equal(of[keyframes[side]], of)
        for first, last in zip(SHOTS, [*SHOTS[1:], frames], strict=True):
            alone = keyframes[(keyframes >= first) & (keyframes < last)] - first
            wanted = neighbours(last - first, alone)
            torch.testing.assert_close(near.weight[first:last], wanted.weight)


def test_windows_are_each_shots_own() -> None:
    keyframes = choose_keyframes(24, 2, 0, 0, interval_starts(24, 2, SHOTS))
    shots = shot_windows(keyframes, SHOTS, 3)
    held = [first + k for first, windows in shots for own in windows.own for k in own]
    assert held == list(range(len(keyframes)))
    for (first, windows), begin in zip(shots, SHOTS, strict=True):
        assert int(keyframes[first]) >= begin
        assert windows.own[0].start == 0
