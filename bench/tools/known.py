"""What is known of a clip of the world, and how far edits of it are from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scenes import Scene, Size
from torch import Tensor
from torch.nn import functional as F

from bench.tools.materials import made_of

BAND = 5  # pixels on both sides of the outline
ABSENT = 0.002  # share of the picture up to which nothing is there


@dataclass(frozen=True)
class Known:
    """source: the clip, (N, 3, H, W). ground: its kind. bare: the ground without objects, (N, 3, H,
    W). masks: where the object is seen, (N, H, W) bool. hidden: what another object before it
    covers, with a margin, (N, H, W) bool; nothing is measured there.
    """

    source: Tensor
    ground: str
    bare: Tensor
    masks: Tensor
    hidden: Tensor

    @classmethod
    def of(
        cls, source: Tensor, shots: Sequence[Scene], times: Sequence[float], size: Size = 128
    ) -> Known:
        """shots, times: of each frame its scene and its time there."""
        frames = list(zip(shots, times, strict=True))
        masks = torch.stack([scene.mask(t, size) for scene, t in frames])
        hidden = torch.zeros_like(masks)
        for covered, (scene, t) in zip(hidden, frames, strict=True):
            for sprite in scene.sprites()[1:]:
                covered |= grown(sprite.mask(t, size)[None], 2)[0]
        bare = torch.stack([scene.bare(t, size) for scene, t in frames])
        return cls(source, shots[0].ground, bare, masks, hidden)

    @cached_property
    def band(self) -> Tensor:
        """(N, H, W) bool: near the outline."""
        return grown(self.masks, BAND) & grown(~self.masks, BAND) & ~self.hidden

    @cached_property
    def away(self) -> Tensor:
        """(N, H, W) bool: away from all objects."""
        return ~grown(self.masks, BAND) & ~self.hidden

    def made_of(self, pictures: Tensor, surface: str) -> Tensor:
        """(N, H, W) bool: what of an edit (N, 3, H, W) is of a surface."""
        return made_of(pictures, surface, self.ground, self.bare, self.source, self.masks)

    def overlaps(self, pictures: Tensor, surface: str) -> Tensor:
        """(N,): IoU of a surface's pixels with the true outline; where nothing shall be, 1 if
        nothing is there and else 0.
        """
        found = self.made_of(pictures, surface) & ~self.hidden
        wanted = self.masks & ~self.hidden
        both, either = (
            (part.flatten(1).float().mean(1)) for part in (found & wanted, found | wanted)
        )
        nothing = wanted.flatten(1).float().mean(1) <= ABSENT
        return torch.where(nothing, (either <= ABSENT).float(), both / either.clamp(min=1e-9))

    def drift(self, error: Tensor) -> float | None:
        """Largest channel's change of the ground's mean error (N, 3, H, W) from the first quarter
        of the frames to the last, in 1/255.
        """
        quarter = max(1, len(error) // 4)

        def mean(frames: slice) -> Tensor:
            where = self.away[frames][:, None]
            return (error[frames] * where).sum((0, 2, 3)) / where.sum().clamp(min=1)

        if not bool(self.away[:quarter].any()) or not bool(self.away[-quarter:].any()):
            return None
        return 255 * float((mean(slice(-quarter, None)) - mean(slice(quarter))).abs().max())


def decibels(error: Tensor, where: Tensor) -> float | None:
    """PSNR of an error (N, 3, H, W) where (N, H, W) bool; None for nowhere."""
    mean = mean_over(error.square().mean(1), where)
    return None if mean is None else -10 * float(torch.tensor(max(mean, 1e-12)).log10())


def mean_over(values: Tensor, where: Tensor) -> float | None:
    """The mean of values (N, H, W) where (N, H, W) bool; None for nowhere."""
    return float(values[where].mean()) if bool(where.any()) else None


def grown(masks: Tensor, pixels: int) -> Tensor:
    """Masks (N, H, W) bool with all that lies within so many pixels."""
    return F.max_pool2d(masks[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0
