"""Means, shares and the intervals that hold 95 % of their resamplings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from torch import Tensor

RESAMPLINGS = 2000


def resampled(clips: Sequence[Hashable]) -> np.ndarray:
    """Positions of edits, (RESAMPLINGS, n): clips drawn with replacement, then as many of each
    clip's edits: edits of a clip are alike.

    clips: of each edit, which clip it is of.
    """
    draw = np.random.default_rng(0)
    of_clip = [[i for i, clip in enumerate(clips) if clip == one] for one in dict.fromkeys(clips)]
    each = len(clips) // len(of_clip)

    def resample() -> list[int]:
        return [
            draw.choice(of_clip[clip])
            for clip in draw.integers(len(of_clip), size=len(of_clip))
            for _ in range(each)
        ]

    return np.array([resample() for _ in range(RESAMPLINGS)])


def interval(values: Tensor, base: Tensor | None, drawn: np.ndarray) -> tuple[float, float, float]:
    """The mean of values (n,), or its share of the mean of `base` (n,), and the ends of its
    interval; NaN values are left out.
    """

    def mean(of: Tensor) -> np.ndarray:
        taken = of.numpy()[drawn]
        counted = ~np.isnan(taken)
        return np.where(counted, taken, 0).sum(1) / np.maximum(counted.sum(1), 1)

    def whole(of: Tensor) -> float:
        return float(np.nanmean(of.numpy())) if not bool(of.isnan().all()) else float("nan")

    if bool(values.isnan().all()):
        return float("nan"), float("nan"), float("nan")
    spread = mean(values) if base is None else mean(values) / mean(base)
    value = whole(values) if base is None else whole(values) / whole(base)
    return value, *(float(end) for end in np.percentile(spread, [2.5, 97.5]))
