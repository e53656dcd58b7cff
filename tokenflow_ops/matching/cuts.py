"""Cuts: where a clip goes on with another shot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 3  # places of a patch's side, in latents
EVERY = 2  # of so many rows and columns one patch is looked for
LONGEST = 64  # places of a side; larger latents are averaged
NEARBY = 8  # frames on each side that say what is usual
# A frame is the first of a shot if its patches are missed and scattered this much more than usual.
# Between shots of the embedded model's world with the same words, whose patches are alike,
# mostly 3 and more; within shots at most 2.3 (`bench cuts`).
BROKEN = 2.4
FLOOR = 0.05  # deviations of the latents that are no difference, as of a still clip
SCATTERED = 0.15  # share of patches that are scattered by chance
APART = 1  # places by which neighbours' patches may move apart from each other
FEWEST = 4  # frames; of fewer nothing is usual


def find_cuts(
    latents: Tensor,
    device: torch.device | str = "cpu",
    check: Callable[[], None] = lambda: None,
) -> tuple[int, ...]:
    """Finds the first frame of each shot.

    Patches of a frame are looked for anywhere in the frame before. Motion keeps them, and keeps
    neighbours together, also fast motion; what enters is a small part of the picture. A cut leaves
    hardly any, or, between shots of the same things, alike ones scattered all over the picture. A
    single odd frame (a flash, blur) is no cut: two frames before are compared with two after it,
    and the most alike of them count.

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
    found = breaks(latents, device, check)
    return (0, *(frame for frame, broken in enumerate(found) if broken > BROKEN))


def breaks(
    latents: Tensor,
    device: torch.device | str = "cpu",
    check: Callable[[], None] = lambda: None,
) -> list[float]:
    """Measures how much more than usual is missed and scattered from one frame to the next.

    Args:
        latents: The clean source, (N, C, h, w).
        device: Where to search.
        check: Called for every frame; may raise to stop.

    Returns:
        Of each frame how far it breaks with those before, 1 for as usual; 0 for the first one and
        where nothing is usual.
    """
    count, smallest = len(latents), min(latents.shape[2:])
    if count < FEWEST or smallest < PATCH:
        return [0.0] * count
    search = _Patches(latents, device)
    steps = [(0.0, 0.0)]
    for frame in range(1, count):
        check()
        steps.append(search.change(frame, frame - 1))
    found = [0.0]
    for frame in range(1, count):
        check()
        around = range(max(1, frame - NEARBY), min(count, frame + NEARBY + 1))
        others = zip(*(steps[other] for other in around if other != frame), strict=True)
        usual = [sorted(kind)[len(kind) // 2] for kind in others]
        broken = search.against(steps[frame], usual)
        if broken > BROKEN:  # only then are other pairs of frames looked at
            across = (search.against(change, usual) for change in search.across(frame))
            broken = min(broken, *across)
        found.append(broken)
    return found


class _Patches:
    """All patches of a clip, two frames' at a time."""

    def __init__(self, latents: Tensor, device: torch.device | str) -> None:
        shrink = -(-max(latents.shape[2:]) // LONGEST)
        self.latents = F.avg_pool2d(latents.float(), shrink) if shrink > 1 else latents.float()
        self.device = device
        deviation = float(latents.std()) * (latents.shape[1] * PATCH**2) ** 0.5
        self.floor = FLOOR * deviation or 1.0  # of a clip without any nothing is missed

    def change(self, frame: int, where: int) -> tuple[float, float]:
        """What another frame has of a frame's patches.

        Returns: how far the middle one is from the closest, and the share of scattered ones.
        """
        pair = self.latents[[frame, where]].to(self.device)
        wanted, there = F.unfold(pair, PATCH).transpose(1, 2)
        rows = pair.shape[2] - PATCH + 1
        few = wanted.unflatten(0, (rows, -1))[::EVERY, ::EVERY]
        distance, place = torch.cdist(few.flatten(0, 1), there).min(1)
        return float(distance.median()), _scattered(place.view(few.shape[:2]), len(there) // rows)

    def against(self, change: tuple[float, float], usual: list[float]) -> float:
        """A change as a multiple of the usual one."""
        missed = (change[0] + self.floor) / (usual[0] + self.floor)
        return missed * (change[1] + SCATTERED) / (usual[1] + SCATTERED)

    def across(self, frame: int) -> Iterator[tuple[float, float]]:
        """The changes from the two frames before to the two from `frame` on."""
        for later in range(frame, min(len(self.latents), frame + 2)):
            for earlier in range(max(0, frame - 2), frame):
                yield self.change(later, earlier)


def _scattered(place: Tensor, columns: int) -> float:
    """The share of patches that fewer than two of their four neighbours move with.

    place: where each of every EVERY-th patch lies, (h, w), counted along rows of `columns`.
    """
    y, x = (torch.arange(side, device=place.device) * EVERY for side in place.shape)
    moved = torch.stack([place // columns - y[:, None], place % columns - x])
    return float((~moves_along(moved)).float().mean())


def moves_along(moved: Tensor) -> Tensor:
    """Tells which places move together with at least two of their four neighbours.

    Args:
        moved: By how many rows and columns each place moves, (2, h, w).

    Returns:
        (h, w) bool.
    """
    moved = moved.float()
    around = F.pad(moved[None], (1, 1, 1, 1), mode="replicate")[0]
    height, width = moved.shape[1:]
    beside = [
        around[:, top : top + height, left : left + width]
        for top, left in ((0, 1), (2, 1), (1, 0), (1, 2))
    ]
    together = (torch.stack(beside) - moved).abs().amax(1) <= APART
    return together.sum(0) >= 2
