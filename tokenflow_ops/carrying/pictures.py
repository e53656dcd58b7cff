"""Edited keyframes carried to all frames, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..keyframes import ONE_SHOT
from .guess import SHOWN, Guess
from .motion import LONGEST, Found, at, exposures, find_motion, pixels, torn

NEARBY = 2  # keyframes on each side that a frame takes from
TRUSTED = 0.03  # difference of the source, in [0, 1], at which a pixel is hardly trusted
# Difference of an edited keyframe from its source up to which it is the source, and from which on
# it is not: an autoencoder's error lies below.
SAME, CHANGED = 0.01, 0.04
GROWN = 2  # pixels around hidden ones that are computed as well
HIDDEN = 0.5  # of what looks like an unseen pixel so much was changed: the model paints it better


@dataclass(frozen=True)
class Carried:
    """Edited keyframes, carried to all frames of a clip.

    Attributes:
        pictures: (N, 3, H, W) in [0, 1]; the keyframes themselves as they were given.
        hidden: (N, H, W) in [0, 1], 1 where no keyframe shows what the frame shows.
    """

    pictures: Tensor
    hidden: Tensor


def carry_pictures(
    source: Tensor,
    edited: Tensor,
    numbers: Sequence[int],
    shots: Sequence[int] = ONE_SHOT,
    agreement: float = 0.0,
    on_frames: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> Carried:
    """Makes a clip of its edited keyframes, along the source's motion.

    Every pixel is a mean of where it lies in the keyframes nearby, weighted by how alike the source
    is there and by the distance in time. Where none of them shows it, it is what the keyframes make
    of pixels that look like it. Where a keyframe was left as it is, the frame's own source is kept,
    with what little was changed.

    Args:
        source: The clip, (N, 3, H, W) in [0, 1].
        edited: The edited keyframes, (k, 3, H, W) in [0, 1].
        numbers: Their frame numbers, k, ascending.
        shots: The first frame of each shot, ascending from 0; each has a keyframe. Nothing is
            carried across.
        agreement: How much the keyframes of a shot take over from the middle one where it shows the
            same, 0 to 1; 0 keeps them as they are.
        on_frames: Called with how many frames were searched in a keyframe, and how many are to be.
        check: Called for every frame; may raise to stop.

    Returns:
        The clip.

    Raises:
        ValueError: If a shot has no keyframe.
        LibraryError: If OpenCV is missing or broken.
    """
    small = _shrunk(source)
    light = exposures(small, tuple(shots))
    even = small / light[:, None, None, None]
    if agreement:
        edited = _agreed(source, even, light, edited, numbers, shots, agreement, check)
    spans = [_span(i, numbers, shots, len(source)) for i in range(len(numbers))]
    total = sum(len(span) - 1 for span in spans)
    result, done = _Sum(source, edited, numbers), 0
    guess = Guess(even, light, numbers, _shrunk(result.made()))
    for row, (keyframe, span) in enumerate(zip(numbers, spans, strict=True)):
        for found in find_motion(even, keyframe, span, check):
            result.add(found, row, light[found.frame] / light[keyframe])
            guess.seen(found, row)
            done += 1
            on_frames(done, total)
    return result.carried(guess, check)


def _agreed(
    source: Tensor,
    even: Tensor,
    light: Tensor,
    edited: Tensor,
    numbers: Sequence[int],
    shots: Sequence[int],
    agreement: float,
    check: Callable[[], None],
) -> Tensor:
    """The edited keyframes, closer to the middle one of their shot, (k, 3, H, W)."""
    agreed, sums = edited.clone(), _Sum(source, edited, numbers)
    for first, stop in zip(shots, [*shots[1:], len(source)], strict=True):
        rows = [row for row, number in enumerate(numbers) if first <= number < stop]
        middle = rows[len(rows) // 2]
        span = range(numbers[rows[0]], numbers[rows[-1]] + 1)
        for found in find_motion(even, numbers[middle], span, check):
            if found.frame in numbers:
                row, share = numbers.index(found.frame), light[found.frame] / light[numbers[middle]]
                picture, trust, changed = sums.seen(found, middle, share)
                # What either keyframe has changed: elsewhere both are the source.
                touched = torch.maximum(changed, _share_changed(sums.changed[row]))
                agreed[row] = torch.lerp(edited[row], picture, agreement * trust.sqrt() * touched)
    return agreed


def _span(position: int, numbers: Sequence[int], shots: Sequence[int], frames: int) -> range:
    """The frames that take from a keyframe."""
    begins = [first for first in shots if first <= numbers[position]][-1]
    ends = next((first for first in shots if first > numbers[position]), frames)
    before, after = position - NEARBY, position + NEARBY
    first = numbers[before] + 1 if before >= 0 else 0
    stop = numbers[after] if after < len(numbers) else frames
    return range(max(begins, first), min(ends, stop))


class _Sum:
    """Weighted sums of what keyframes show, frame by frame."""

    def __init__(self, source: Tensor, edited: Tensor, numbers: Sequence[int]) -> None:
        self.source, self.edited, self.numbers = source, edited, numbers
        self.sum, self.weight = torch.zeros_like(source), torch.zeros_like(source[:, :1])
        self.shown = torch.zeros_like(source[:, 0])
        self.change = edited - source[list(numbers)]
        self.changed = [_blurred(one.abs().mean(0, keepdim=True)) for one in self.change]

    def add(self, found: Found, row: int, light: Tensor) -> None:
        """Adds what a keyframe shows of a frame. light: the frame's, beside the keyframe's."""
        picture, trust, _ = self.seen(found, row, light)
        frame = found.frame
        weight = (trust + 1e-6) / abs(frame - self.numbers[row])
        self.sum[frame] += weight * picture
        self.weight[frame] += weight
        self.shown[frame] = torch.maximum(self.shown[frame], trust[0])

    def seen(self, found: Found, row: int, light: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a keyframe makes of a frame, how far to trust it, and how far it is changed there.

        Returns: (3, H, W), and two (1, H, W) from 0 to 1.
        """
        frame, size = found.frame, (self.source.shape[2], self.source.shape[3])
        where = _enlarged(found.positions, size)
        trust = torch.exp(-((_resized(found.error[None], size) / TRUSTED) ** 2))
        trust = trust * (1 - _resized(torn(found.positions)[None], size)).clamp(min=SHOWN)
        edited = (at(self.edited[row], where) * light).clamp(0, 1)
        kept = self.source[frame] + at(self.change[row], where) * light
        changed = _share_changed(at(self.changed[row], where))
        return torch.lerp(kept, edited, changed), trust, changed

    def made(self) -> Tensor:
        """Of each keyframe the edit, its change and how far it changed, (k, 7, H, W)."""
        changed = torch.stack([_share_changed(one) for one in self.changed])
        return torch.cat([self.edited, self.change, changed], 1)

    def carried(self, guess: Guess, check: Callable[[], None]) -> Carried:
        """The means, guesses where nothing was found; the keyframes as they are."""
        others = [frame for frame in range(len(self.source)) if frame not in self.numbers]
        if bool((self.weight[others].flatten(1).amax(1) == 0).any()):
            raise ValueError("there are frames in whose shot no keyframe lies")
        pictures = (self.sum / self.weight.clamp(min=1e-12)).clamp(0, 1)
        pictures[list(self.numbers)] = self.edited
        hidden = torch.zeros_like(self.shown)
        for frame in others:
            check()
            likely, changed, share = self._guessed(guess, frame)
            pictures[frame] = torch.lerp(pictures[frame], likely, share)
            unseen = (self.shown[frame] < SHOWN) & (changed[0] > HIDDEN)
            hidden[frame] = F.max_pool2d(unseen[None].float(), 2 * GROWN + 1, 1, GROWN)[0]
        return Carried(pictures, hidden)

    def _guessed(self, guess: Guess, frame: int) -> tuple[Tensor, Tensor, Tensor]:
        """What a frame is likely to show.

        Returns: (3, H, W), how far that is changed and how far to follow it, both (1, H, W).
        """
        found, size = guess.of(frame), (self.source.shape[2], self.source.shape[3])
        changed = _resized(found.changed, size)
        kept = self.source[frame] + _resized(found.change, size)
        likely = torch.lerp(kept, _resized(found.edited, size), changed).clamp(0, 1)
        return likely, changed, _resized(found.share, size)


def _share_changed(difference: Tensor) -> Tensor:
    """From 0 for the source itself to 1 for what was edited."""
    return ((difference - SAME) / (CHANGED - SAME)).clamp(0, 1)


def _shrunk(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) with no side above LONGEST."""
    share = LONGEST / max(pictures.shape[2:])
    if share >= 1:
        return pictures
    size = [max(1, round(side * share)) for side in pictures.shape[2:]]
    return F.interpolate(pictures, size, mode="area")


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (C, h, w) at another size."""
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _enlarged(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions (2, h, w) in pictures of another size, in their pixels."""
    height, width = positions.shape[1:]
    if (height, width) == size:
        return positions
    scale = torch.tensor([size[1] / width, size[0] / height])[:, None, None]
    moved = positions - pixels(height, width)
    return pixels(*size) + _resized(moved, size) * scale


def _blurred(change: Tensor) -> Tensor:
    """(1, H, W), mean over 3 x 3 pixels."""
    return F.avg_pool2d(change[None], 3, 1, 1, count_include_pad=False)[0]
