"""Which frames of a clip are best edited by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..keyframes import ONE_SHOT, spread

SIDE = 64  # pixels of the longest side of the pictures that are compared
PATCH, EVERY = 5, 3  # pixels of a patch's side, and the distance of those that are looked for
CANDIDATES, LOOKED_AT = 16, 32  # frames of a shot that may be keyframes, and in which is looked
FOUND = 0.05  # mean difference of a patch, in [0, 1], up to which another frame shows it too
ENOUGH = 0.01  # share of what appears that a further keyframe must bring


def covering(
    frames: Tensor,
    most: int,
    shots: Sequence[int] = ONE_SHOT,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """Chooses frames so that each part of what appears in a clip is seen in one of them.

    The next one is always the frame that shows most of what the others lack.

    Args:
        frames: (N, 3, H, W) in [0, 1].
        most: How many are chosen at most in a shot.
        shots: The first frame of each shot, ascending from 0; at least one frame of each is chosen.
        check: Called for every frame; may raise to stop.

    Returns:
        Frame numbers, ascending.

    Examples:
        A still clip needs one frame, and what comes in later another one:

        >>> still = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
        >>> clip = still.repeat(6, 1, 1, 1)
        >>> len(covering(clip, most=4))
        1
        >>> clip[3:] = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(1))
        >>> [frame // 3 for frame in covering(clip, most=4)]
        [0, 1]
    """
    share = SIDE / max(frames.shape[2:])
    if share < 1:
        size = [max(PATCH, round(side * share)) for side in frames.shape[2:]]
        frames = F.interpolate(frames, size, mode="area")
    chosen = []
    for first, stop in zip(shots, [*shots[1:], len(frames)], strict=True):
        chosen += [first + frame for frame in _of_shot(frames[first:stop], most, check)]
    return chosen


def _of_shot(frames: Tensor, most: int, check: Callable[[], None]) -> list[int]:
    """The chosen frames of a shot, (n, 3, h, w)."""
    patches = [F.unfold(frame[None], PATCH)[0].T for frame in frames]
    columns = frames.shape[3] - PATCH + 1
    looked_at = spread(len(frames), LOOKED_AT).tolist()
    wanted = [patches[i].unflatten(0, (-1, columns))[::EVERY, ::EVERY].flatten(0, 1)
              for i in looked_at]  # fmt: skip
    everything = torch.cat(wanted)
    candidates = spread(len(frames), CANDIDATES).tolist()
    length = (3 * PATCH**2) ** 0.5
    shows = []
    for frame in candidates:
        check()
        nearest = torch.cdist(everything, patches[frame]).amin(1) / length
        shows.append(nearest <= FOUND)
    missing, chosen = torch.ones(len(everything), dtype=torch.bool), list[int]()
    # Of frames that show as much the one in the middle: motion from there is shortest.
    order = sorted(range(len(candidates)), key=lambda i: abs(candidates[i] - len(frames) / 2))
    while len(chosen) < most:
        gains = [int((shows[i] & missing).sum()) for i in order]
        best = order[max(range(len(order)), key=gains.__getitem__)]
        if chosen and max(gains) < ENOUGH * len(everything):
            break
        chosen.append(candidates[best])
        missing &= ~shows[best]
    return sorted(chosen)
