"""What an edit is likely to have made of pixels that no keyframe shows.

The keyframes show what was made of pixels that look like them: of an object whose half is outside
the picture the other half, of the ground that it uncovers the ground beside it. A pixel's look is
its colour and the mean around it, which are the same however things have turned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .motion import Found, torn

SHOWN = 0.01  # trust in what neighbours contradict: from anywhere, and alike by chance
NEAREST, KEPT = 8, 8192  # pixels that a guess is the mean of, out of so many
ALIKE = 0.03  # difference of two looks, in [0, 1], at which little is known
LIKELY = 0.1  # trust in a guess whose look is exactly the same
# Difference of the source at which what was carried is hardly better than a guess. It is more than
# what keyframes are weighed by: what turns and grows is unlike itself, yet carried rightly.
CARRIED = 0.06
REACH = 4  # pixels on each side that tell of one that looks like nothing
SURE = 0.5  # trust in what was carried from which on nothing is guessed
AT_ONCE = 2048  # pixels that are looked for together


@dataclass(frozen=True)
class Guessed:
    """What is likely to be seen in a frame, of a small picture's h x w.

    Attributes:
        edited: The edit there, (3, h, w).
        change: What it changed of the source, (3, h, w).
        changed: How many of what looks alike were changed, (1, h, w) from 0 to 1.
        share: How far to follow the guess, (1, h, w) from 0 to 1.
    """

    edited: Tensor
    change: Tensor
    changed: Tensor
    share: Tensor


class Guess:
    """Guesses of a clip's pixels by its edited keyframes.

    Args:
        frames: The source, (N, 3, h, w), of equal light.
        light: How bright each frame is, (N,).
        numbers: The keyframes' numbers, k.
        made: Of each keyframe the edit, its change and how far it changed, (k, 7, h, w).
    """

    def __init__(self, frames: Tensor, light: Tensor, numbers: Sequence[int], made: Tensor) -> None:
        self.frames, self.light, self.numbers, self.made = frames, light, numbers, made
        self.sure = torch.zeros_like(frames[:, 0])
        self.rows: list[list[int]] = [[] for _ in frames]

    def seen(self, found: Found, row: int) -> None:
        """Takes note of how surely a frame's pixels were found in a keyframe.

        Of a frame that is flawed nothing is guessed: its looks are not the source's.

        Args:
            found: Where they lie.
            row: The keyframe's place among the numbers.
        """
        sure = torch.exp(-((found.error / CARRIED) ** 2))
        sure = sure * (1 - torn(found.positions)).clamp(min=SHOWN)
        sure = torch.ones_like(sure) if found.flawed else sure
        self.sure[found.frame] = torch.maximum(self.sure[found.frame], sure)
        self.rows[found.frame].append(row)

    def of(self, frame: int) -> Guessed:
        """Guesses a frame's pixels, where they were not surely found.

        Args:
            frame: Its number; it was seen in one keyframe at least.

        Returns:
            The guess, with a share of 0 where there is none.
        """
        lost = self.sure[frame] < SURE
        values = self.frames.new_zeros(8, *lost.shape)
        if bool(lost.any()):
            looks, made = self._known(frame)
            unlike, mean = _nearest(_looks(self.frames[frame])[:, lost].T, looks, made)
            known = torch.exp(-((unlike / ALIKE) ** 2)) + 1e-6
            values[:, lost] = torch.cat([mean.T, known[None]])
            mean = torch.lerp(_around(values)[:, lost].T, mean, known[:, None])
            trust = LIKELY * known
            carried = self.sure[frame][lost]
            share = trust**2 / (trust**2 + carried**2)
            values[:, lost] = torch.cat([mean.T, share[None]])
        return Guessed(values[:3], values[3:6], values[6:7], values[7:])

    def _known(self, frame: int) -> tuple[Tensor, Tensor]:
        """Looks (n, 6) in a frame's keyframes, and what was made of them (n, 7) in its light."""
        rows = self.rows[frame]
        every = max(1, math.ceil(math.sqrt(len(rows) * self.sure[0].numel() / KEPT)))
        looks, made = list[Tensor](), list[Tensor]()
        for row in rows:
            number = self.numbers[row]
            lit = self.made[row].clone()
            lit[:6] *= self.light[frame] / self.light[number]
            for part, values in ((looks, _looks(self.frames[number])), (made, lit)):
                part.append(values[:, ::every, ::every].flatten(1).T)
        return torch.cat(looks), torch.cat(made)


def _looks(picture: Tensor) -> Tensor:
    """(6, h, w): each pixel's colour and the mean of 3 x 3 pixels around it."""
    around = F.avg_pool2d(picture[None], 3, 1, 1, count_include_pad=False)[0]
    return torch.cat([picture, around])


def _around(values: Tensor) -> Tensor:
    """Means around each pixel of values (C, h, w), weighted by the last of their channels.

    Returns: (C - 1, h, w).
    """
    known = values[-1:]
    weighted = torch.cat([values[:-1] * known, known])
    sums = F.avg_pool2d(weighted[None], 2 * REACH + 1, 1, REACH)[0]
    return sums[:-1] / sums[-1:].clamp(min=1e-9)


def _nearest(wanted: Tensor, looks: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """How unlike the likest look is (m,), and the mean of what was made of the likest (m, 7)."""
    unlike, means = [], []
    for part in wanted.split(AT_ONCE):
        distance, place = torch.cdist(part, looks).topk(min(NEAREST, len(looks)), largest=False)
        distance = distance / looks.shape[1] ** 0.5
        weight = torch.exp(-((distance / (distance[:, :1] + ALIKE)) ** 2))[..., None]
        unlike.append(distance[:, 0])
        means.append((made[place] * weight).sum(1) / weight.sum(1))
    return torch.cat(unlike), torch.cat(means)
