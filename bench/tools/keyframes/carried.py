"""What users do today with a few edited frames of a clip, and frames as editors leave them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy

import torch
from clips import Clip
from scenes import Texture
from tokenflow_pack.tokenflow_ops.carrying.motion import Found, at, find_motion, pixels
from tokenflow_pack.tokenflow_ops.measuring.metrics import dis_flow
from torch import Tensor
from torch.nn import functional as F

SHIFT, LARGER = 5 / 255, 1.05
PATCH, COARSE = 5, 2  # pixels of a patch's side, in pictures so many times smaller
PLACE = 0.1  # how much a patch's place counts beside its colours

# Where the pixels of a frame lie in a keyframe, (2, H, W): of a source, a frame and a keyframe.
Places = Callable[[Tensor, int, int], Tensor]


def straight(source: Tensor, frame: int, keyframe: int) -> Tensor:
    """By optical flow from the frame to the keyframe."""
    return pixels(*source.shape[2:]) + dis_flow(source[frame], source[keyframe])


def chained(source: Tensor, frame: int, keyframe: int) -> Tensor:
    """By optical flow from frame to frame, added up."""
    here = pixels(*source.shape[2:])
    found, step = here, 1 if keyframe > frame else -1
    for now in range(frame, keyframe, step):
        found = found + at(dis_flow(source[now], source[now + step]), found)
    return found


def patches(source: Tensor, frame: int, keyframe: int) -> Tensor:
    """To the most similar patch of the source's keyframe."""
    small = F.interpolate(source[[frame, keyframe]], scale_factor=1 / COARSE, mode="area")
    grid = pixels(*small.shape[2:])
    place = PLACE * grid / max(small.shape[2:]) * PATCH
    padded = F.pad(small, (PATCH // 2,) * 4, mode="replicate")
    wanted, there = (
        torch.cat([part, place.flatten(1)]).T.contiguous() for part in F.unfold(padded, PATCH)
    )
    moved = grid.flatten(1)[:, nearest(wanted, there)].view_as(grid) - grid
    return pixels(*source.shape[2:]) + COARSE * F.interpolate(moved[None], scale_factor=COARSE)[0]


def nearest(wanted: Tensor, there: Tensor) -> Tensor:
    """Of every row of `wanted` (n, D) the nearest one in `there` (m, D), (n,)."""
    return torch.cat([torch.cdist(part, there).argmin(1) for part in wanted.split(1024)])


def held(source: Tensor, frame: int, keyframe: int) -> Tensor:
    """Where they are."""
    return pixels(*source.shape[2:])


FLOWS = ("flow_warp", "flow_chain")
ROWS: dict[str, Places] = {
    "flow_warp": straight,
    "flow_chain": chained,
    "nearest_patches": patches,
    "hold": held,
}


class Fading:
    """The nearest keyframes, moved by a row's places and cross-faded.

    source: (N, 3, H, W). shots: the first frame of each.
    """

    def __init__(
        self, row: str, source: Tensor, numbers: Sequence[int], shots: Sequence[int]
    ) -> None:
        self.numbers, self.shares = list(numbers), [dict[int, float]() for _ in source]
        self.places: dict[tuple[int, int], Tensor] = {}
        for frame, shares in enumerate(self.shares):
            shot = [first for first in shots if first <= frame][-1]
            stop = next((first for first in shots if first > frame), len(source))
            inside = [number for number in numbers if shot <= number < stop]
            sides = [[n for n in inside if n <= frame][-1:], [n for n in inside if n >= frame][:1]]
            near = sorted({number for side in sides for number in side})
            if row == "hold":
                near = [min(near, key=lambda number: abs(number - frame))]
            for keyframe in near:
                other = sum(near) - keyframe
                whole = len(near) == 1
                shares[keyframe] = 1.0 if whole else abs(other - frame) / abs(other - keyframe)
                self.places[frame, keyframe] = ROWS[row](source, frame, keyframe)

    def made(self, edited: Tensor) -> Tensor:
        """The clip (N, 3, H, W) of edited keyframes (k, 3, H, W)."""
        rows = dict(zip(self.numbers, edited, strict=True))
        return torch.stack(
            [
                rows[frame]
                if frame in rows
                else torch.stack(
                    [
                        share * at(rows[keyframe], self.places[frame, keyframe])
                        for keyframe, share in shares.items()
                    ]
                ).sum(0)
                for frame, shares in enumerate(self.shares)
            ]
        )


class Remembered:
    """A clip's motion, in place of `find_motion`: searched once for all edits of its keyframes."""

    def __init__(self) -> None:
        self.known: dict[int, dict[int, Found]] = {}

    def __call__(
        self, frames: Tensor, keyframe: int, span: range, check: Callable[[], None]
    ) -> Iterator[Found]:
        known = self.known.setdefault(keyframe, {})
        others = [frame for frame in span if frame != keyframe]
        if any(frame not in known for frame in others):
            known |= {one.frame: one for one in find_motion(frames, keyframe, span, check)}
        yield from (known[frame] for frame in others)


def disturbed(clip: Clip, surface: str, numbers: Sequence[int]) -> Tensor:
    """The keyframes of the ideal edit as an editor makes them one by one, (k, 3, H, W).

    Each has another texture of the surface, colours a little off, and an object that is larger.
    """
    dressed, found = clip.dressed(surface), []
    for row, number in enumerate(numbers):
        scene = copy(dressed.shots[number])
        scene.surface_texture = Texture(surface, torch.Generator().manual_seed(100 + row))
        scene.size *= LARGER
        picture = scene.render(dressed.times[number], dressed.size)
        found.append((picture + (SHIFT if row % 2 else -SHIFT)).clamp(0, 1))
    return torch.stack(found)


def placed(shots: Sequence[int], frames: int, count: int) -> list[int]:
    """The middles of `count` equal parts of each shot, as far as it has so many frames."""
    ends = [*shots[1:], frames]
    return [
        first + int((stop - first) * (2 * part + 1) / (2 * min(count, stop - first)))
        for first, stop in zip(shots, ends, strict=True)
        for part in range(min(count, stop - first))
    ]
