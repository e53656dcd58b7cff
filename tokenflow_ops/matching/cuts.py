"""Cuts: where a clip goes on with another shot."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 3  # places of a patch's side, in latents
EVERY = 3  # of so many rows and columns one patch is looked for
LONGEST = 64  # places of a side; larger latents are averaged
NEARBY = 8  # frames on each side that say what is usual
# A frame is the first of a shot if its patches are missed this much more than usual. Between shots
# of the embedded model's world, with the same words, 1.4 to 4.1; within shots at most 1.3 (a zoom).
MISSED = 1.35
FLOOR = 0.05  # deviations of the latents that are no difference, as of a still clip
FEWEST = 4  # frames; of fewer nothing is usual


def find_cuts(
    latents: Tensor,
    device: torch.device | str = "cpu",
    check: Callable[[], None] = lambda: None,
) -> tuple[int, ...]:
    """Finds the first frame of each shot.

    Patches of a frame are looked for anywhere in the frame before. Motion keeps them, also fast
    motion; what enters is a small part of the picture; a cut leaves hardly any. A single odd frame
    (a flash, blur) is no cut: two frames before are compared with two after it, and the most alike
    of them count.

    Args:
        latents: The clean source, (N, C, h, w).
        device: Where to search.
        check: Called for every frame; may raise to stop.

    Returns:
        Frame numbers, ascending from 0; (0,) for a clip without a cut.

    Examples:
        >>> shots = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
        >>> panned = [shots[i // 4, :, :, i % 4 : i % 4 + 16] for i in range(8)]
        >>> find_cuts(torch.stack(panned))
        (0, 4)
    """
    count, smallest = len(latents), min(latents.shape[2:])
    if count < FEWEST or smallest < PATCH:
        return (0,)
    search = _Patches(latents, device)
    usual = [0.0, *(search.missed(frame, frame - 1) for frame in range(1, count))]
    firsts = [0]
    for frame in range(1, count):
        check()
        around = range(max(1, frame - NEARBY), min(count, frame + NEARBY + 1))
        others = sorted(usual[other] for other in around if other != frame)
        most = MISSED * (others[len(others) // 2] + search.floor)
        if usual[frame] > most and search.parted(frame) > most:
            firsts.append(frame)
    return tuple(firsts)


class _Patches:
    """All patches of a clip, two frames' at a time."""

    def __init__(self, latents: Tensor, device: torch.device | str) -> None:
        shrink = -(-max(latents.shape[2:]) // LONGEST)
        self.latents = F.avg_pool2d(latents.float(), shrink) if shrink > 1 else latents.float()
        self.device = device
        self.floor = FLOOR * float(latents.std()) * (latents.shape[1] * PATCH**2) ** 0.5

    def missed(self, frame: int, where: int) -> float:
        """How far the middle one of a frame's patches is from the closest one in another frame."""
        pair = self.latents[[frame, where]].to(self.device)
        wanted, there = F.unfold(pair, PATCH).transpose(1, 2)
        rows = pair.shape[2] - PATCH + 1
        few = wanted.unflatten(0, (rows, -1))[::EVERY, ::EVERY].flatten(0, 1)
        return float(torch.cdist(few, there).amin(1).median())

    def parted(self, frame: int) -> float:
        """How far apart the two frames before and the two from `frame` on are at least."""
        before = range(max(0, frame - 2), frame)
        after = range(frame, min(len(self.latents), frame + 2))
        return min(self.missed(later, earlier) for later in after for earlier in before)
