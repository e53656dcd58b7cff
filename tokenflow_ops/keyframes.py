"""Which frames are edited jointly at a step, and which two of them every frame follows (paper,
section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Keyframes that are edited together if nothing else is asked for: clips of up to 64 frames at
# interval 8.
JOINT_KEYFRAMES = 8


def choose_keyframes(frames: int, interval: int, seed: int, step: int) -> Tensor:
    """One random frame of every interval of `interval` frames; the last interval may be shorter.

    The draw depends on `seed` and `step` alone, never on a device or on earlier draws.

    Returns: (k,) int64, ascending, k = ceil(frames / interval).
    Raises: ValueError if `frames` or `interval` is below 1.
    """
    if frames < 1 or interval < 1:
        raise ValueError(f"frames and interval must be at least 1, got {frames} and {interval}")
    # 2**64 is the generator's range; a large odd factor keeps neighbouring seeds from sharing draws
    # with neighbouring steps.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + step) % 2**63)
    starts = torch.arange(0, frames, interval)
    lengths = (frames - starts).clamp(max=interval)
    draws = torch.rand(len(starts), generator=generator, dtype=torch.float64)
    return starts + (draws * lengths).long()


def attended_keyframes(frames: Tensor, keyframes: Tensor, limit: int) -> Tensor:
    """The `limit` keyframes closest in time to every frame, for extended attention whose cost stays
    linear in long clips.

    frames: (n,) and keyframes: (k,) frame numbers, k >= limit >= 1. Of two at the same distance the
    earlier one is taken. Returns: (n, limit) int64 positions in `keyframes`, ascending.
    """
    distance = (frames[:, None] - keyframes[None]).abs()
    return distance.argsort(dim=1, stable=True)[:, :limit].sort(1).values


def spread(total: int, most: int) -> Tensor:
    """At most `most` of `total` frames, evenly from the first to the last one.

    Returns: (n,) int64, ascending.
    """
    return torch.linspace(0, total - 1, min(total, most)).round().long()


@dataclass(frozen=True)
class Windows:
    """Which keyframes of a long clip are edited together, one window after the other, so that cost
    and memory do not grow with its square.

    anchors: (a,) positions among the keyframes, spread over the clip; all windows attend to them.
    own: each window's keyframes, in order. tail: how many keyframes of the window before a window
    attends to.
    """

    anchors: Tensor
    own: tuple[range, ...]
    tail: int

    @classmethod
    def of(cls, keyframes: int, limit: int) -> Windows:
        """Windows in which each of so many keyframes attends to at most `limit` >= 1, itself
        included; one window if that is all of them.

        A quarter of the limit each goes to anchors and to the window before.
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
        """The keyframes before a window that it attends to."""
        return range(max(0, window.start - self.tail), window.start)

    def elsewhere(self, window: range) -> Tensor:
        """(n,) bool: the anchors that neither lie in a window nor just before it."""
        return (self.anchors < self.before(window).start) | (self.anchors >= window.stop)


@dataclass(frozen=True)
class Neighbours:
    """The nearest past and future keyframe of every frame.

    past, future: (N,) int64, positions in the list of keyframes (not frame numbers).
    weight: (N,) float32 in [0, 1], the share of the future keyframe.
    """

    past: Tensor
    future: Tensor
    weight: Tensor

    def of(self, frames: Tensor) -> Neighbours:
        """Those of some frames."""
        return Neighbours(self.past[frames], self.future[frames], self.weight[frames])

    def held(self) -> tuple[Tensor, ...]:
        """Its tensors."""
        return self.past, self.future, self.weight

    def counted_from(self, first: int) -> Neighbours:
        """The same, with positions counted from keyframe `first` on."""
        return Neighbours(self.past - first, self.future - first, self.weight)


def neighbours(frames: int, keyframes: Tensor, sigmoid: bool = False) -> Neighbours:
    """The closest keyframes before and after every frame, weighted by the true distances.

    weight = d_past / (d_past + d_future): a keyframe keeps its own tokens whole, and the weights
    run through an interval without a jump. sigmoid: squash this ratio through a sigmoid, as the
    paper prints it: 0.5 to 0.73, so that a frame never follows its past keyframe most. A frame
    outside the first or last keyframe uses the one it has.

    keyframes: (k,) int64, ascending frame numbers.
    """
    index = torch.arange(frames)
    keyframes = keyframes.cpu()
    past = torch.searchsorted(keyframes, index, right=True) - 1
    future = torch.searchsorted(keyframes, index, right=False)
    outside_left, outside_right = past < 0, future >= len(keyframes)
    past = torch.where(outside_left, future, past)
    future = torch.where(outside_right, past, future)
    before, after = (index - keyframes[past]).abs(), (keyframes[future] - index).abs()
    share = before / (before + after).clamp(min=1)
    if sigmoid:
        share = torch.sigmoid(share)
    weight = torch.where(past == future, torch.ones(frames), share)
    return Neighbours(past, future, weight)
