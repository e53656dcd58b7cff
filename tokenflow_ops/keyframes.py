"""Which frames are edited jointly, and which two each frame follows (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Keyframes that are edited together if nothing else is asked for: clips of up to 64 frames at
# interval 8.
JOINT_KEYFRAMES = 8
# The first frames of the shots of a clip without a cut.
ONE_SHOT = (0,)


def choose_keyframes(
    frames: int, interval: int, seed: int, step: int, starts: Tensor | None = None
) -> Tensor:
    """Draws one random frame of every interval.

    The draw depends on `seed` and `step` alone, never on a device or on earlier draws. Of an
    interval n times as long as usual it is every n-th frame's turn alone, so that a frame meets no
    more keyframes over the steps than usual.

    Args:
        frames: N, the number of frames, at least 1.
        interval: Frames of a usual interval, at least 1.
        seed: Another seed draws other keyframes.
        step: Step of the edit; each has a draw of its own.
        starts: The first frame of each interval, (k,) int64, ascending from 0; None for even ones,
            of which the last may be shorter.

    Returns:
        Frame numbers, (k,) int64, ascending.

    Raises:
        ValueError: If `frames` or `interval` is below 1.

    Examples:
        >>> choose_keyframes(20, interval=8, seed=0, step=0).tolist()
        [7, 13, 17]
        >>> choose_keyframes(20, interval=8, seed=0, step=1).tolist()
        [0, 9, 16]
    """
    if frames < 1 or interval < 1:
        raise ValueError(f"frames and interval must be at least 1, got {frames} and {interval}")
    # 2**64 is the generator's range; a large odd factor keeps neighbouring seeds from sharing draws
    # with neighbouring steps.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + step) % 2**63)
    if starts is None:
        starts = interval_starts(frames, interval)
    lengths = starts.diff(append=torch.tensor([frames]))
    apart = -(-lengths // interval)
    turns = -(-lengths // apart)
    draws = torch.rand(len(starts), generator=generator, dtype=torch.float64)
    return starts + (draws * turns).long() * apart


def interval_starts(frames: int, interval: int, shots: Sequence[int] = ONE_SHOT) -> Tensor:
    """Finds the first frame of every interval.

    Args:
        frames: N, the number of frames.
        interval: Frames per keyframe.
        shots: The first frame of each shot, ascending from 0; intervals begin anew at each.

    Returns:
        Frame numbers, (k,) int64, ascending.

    Examples:
        >>> interval_starts(20, interval=8, shots=(0, 5)).tolist()
        [0, 5, 13]
    """
    spans = pairwise([*shots, frames])
    return torch.cat([torch.arange(first, stop, interval) for first, stop in spans])


def attended_keyframes(frames: Tensor, keyframes: Tensor, limit: int) -> Tensor:
    """Finds the `limit` keyframes closest in time to every frame.

    With them the cost of extended attention stays linear in long clips. Of two at the same distance
    the earlier one is taken.

    Args:
        frames: Frame numbers, (n,).
        keyframes: Frame numbers, (k,), ascending.
        limit: How many to find, 1 to k.

    Returns:
        Positions in `keyframes`, (n, limit) int64, ascending.

    Examples:
        >>> keyframes = torch.tensor([0, 4, 8, 12])
        >>> attended_keyframes(torch.tensor([0, 9]), keyframes, limit=2).tolist()
        [[0, 1], [2, 3]]
    """
    distance = (frames[:, None] - keyframes[None]).abs()
    return distance.argsort(dim=1, stable=True)[:, :limit].sort(1).values


def spread(total: int, most: int) -> Tensor:
    """Chooses at most `most` of `total` frames, evenly from the first to the last one.

    Args:
        total: How many frames there are.
        most: How many to choose at most.

    Returns:
        Frame numbers, (n,) int64, ascending.

    Examples:
        >>> spread(10, most=4).tolist()
        [0, 3, 6, 9]
    """
    return torch.linspace(0, total - 1, min(total, most)).round().long()


@dataclass(frozen=True)
class Windows:
    """Which keyframes of a long clip are edited together, one window after the other.

    So cost and memory do not grow with the square of the clip's length.

    Attributes:
        anchors: Positions among the keyframes, (a,), spread over the clip; all windows
            attend to them.
        own: Each window's keyframes, in order.
        tail: How many keyframes of the window before a window attends to.

    Examples:
        >>> windows = Windows.of(12, limit=8)
        >>> windows.own
        (range(0, 4), range(4, 8), range(8, 12))
        >>> windows.anchors.tolist(), windows.before(windows.own[1])
        ([3, 9], range(2, 4))
    """

    anchors: Tensor
    own: tuple[range, ...]
    tail: int

    @classmethod
    def of(cls, keyframes: int, limit: int) -> Windows:
        """Makes windows in which each keyframe attends to at most `limit`, itself included.

        One window if that is all of them. A quarter of the limit each goes to anchors and to the
        window before.

        Args:
            keyframes: How many keyframes there are.
            limit: At least 1.

        Returns:
            Windows that hold each keyframe once.
        """
        if keyframes <= limit:
            return cls(torch.empty(0, dtype=torch.int64), (range(keyframes),), 0)
        few = limit // 4
        count = -(-keyframes // (limit - 2 * few))
        borders = [keyframes * i // count for i in range(count + 1)]
        anchors = torch.tensor(
            [keyframes * (2 * i + 1) // (2 * few) for i in range(few)], dtype=torch.int64
        )
        return cls(anchors, tuple(range(a, b) for a, b in pairwise(borders)), few)

    def before(self, window: range) -> range:
        """Returns the keyframes before a window that it attends to."""
        return range(max(0, window.start - self.tail), window.start)

    def elsewhere(self, window: range) -> Tensor:
        """Tells which anchors lie neither in a window nor just before it, (a,) bool."""
        return (self.anchors < self.before(window).start) | (self.anchors >= window.stop)


def shot_windows(keyframes: Tensor, shots: Sequence[int], limit: int) -> list[tuple[int, Windows]]:
    """Makes the windows of every shot, which know nothing of the other shots' keyframes.

    Args:
        keyframes: Frame numbers, (k,), ascending.
        shots: The first frame of each shot, ascending from 0; each has a keyframe.
        limit: As of `Windows.of`.

    Returns:
        Of every shot the position of its first keyframe, from which its windows count.

    Examples:
        >>> shots = shot_windows(torch.tensor([2, 4, 9, 13]), shots=(0, 8), limit=8)
        >>> [(first, windows.own) for first, windows in shots]
        [(0, (range(0, 2),)), (2, (range(0, 2),))]
    """
    firsts = torch.searchsorted(keyframes, torch.tensor(list(shots))).tolist()
    spans = pairwise([*firsts, len(keyframes)])
    return [(first, Windows.of(stop - first, limit)) for first, stop in spans]


@dataclass(frozen=True)
class Neighbours:
    """The nearest past and future keyframe of every frame.

    Attributes:
        past: Positions in the list of keyframes (not frame numbers), (N,) int64.
        future: The same of the future keyframes.
        weight: The share of the future keyframe, (N,) float32 in [0, 1].
    """

    past: Tensor
    future: Tensor
    weight: Tensor

    def of(self, frames: Tensor) -> Neighbours:
        """Returns those of some frames (n,)."""
        return Neighbours(self.past[frames], self.future[frames], self.weight[frames])

    def held(self) -> tuple[Tensor, ...]:
        """Lists its tensors."""
        return self.past, self.future, self.weight

    def counted_from(self, first: int) -> Neighbours:
        """Returns the same, with positions counted from keyframe `first` on."""
        return Neighbours(self.past - first, self.future - first, self.weight)


def neighbours(
    frames: int, keyframes: Tensor, sigmoid: bool = False, shots: Sequence[int] = ONE_SHOT
) -> Neighbours:
    """Finds the closest keyframes before and after every frame, weighted by the true distances.

    weight = d_past / (d_past + d_future): a keyframe keeps its own tokens whole, and the
    weights run through an interval without a jump. A frame outside the first or last keyframe
    of its shot uses the one it has.

    Args:
        frames: N, the number of frames.
        keyframes: Frame numbers, (k,) int64, ascending.
        sigmoid: Whether to squash this ratio through a sigmoid, as the paper prints it: 0.5 to
            0.73, so that a frame never follows its past keyframe most.
        shots: The first frame of each shot, ascending from 0; each has a keyframe.

    Returns:
        The two keyframes and the weight of each of the N frames.

    Examples:
        >>> near = neighbours(6, torch.tensor([0, 4]))
        >>> near.past.tolist(), near.future.tolist()
        ([0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1])
        >>> near.weight.tolist()
        [1.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    index = torch.arange(frames)
    keyframes = keyframes.cpu()
    past = torch.searchsorted(keyframes, index, right=True) - 1
    future = torch.searchsorted(keyframes, index, right=False)
    begins = torch.tensor(list(shots))
    shot, drawn_in = (torch.searchsorted(begins, at, right=True) for at in (index, keyframes))
    outside_left = (past < 0) | (drawn_in[past.clamp(min=0)] != shot)
    last = len(keyframes) - 1
    outside_right = (future > last) | (drawn_in[future.clamp(max=last)] != shot)
    past = torch.where(outside_left, future, past)
    future = torch.where(outside_right, past, future)
    before, after = (index - keyframes[past]).abs(), (keyframes[future] - index).abs()
    share = before / (before + after).clamp(min=1)
    if sigmoid:
        share = torch.sigmoid(share)
    weight = torch.where(past == future, torch.ones(frames), share)
    return Neighbours(past, future, weight)
