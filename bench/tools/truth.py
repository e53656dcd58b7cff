"""A clip of the world whose edits have a true answer, and how far an edit is from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from clips import Clip
from tokenflow_pack.tokenflow_ops.measuring.metrics import sharpness, warp_errors
from torch import Tensor
from torch.nn import functional as F

from bench.tools.case import Editable, Settings, World, channels_first
from bench.tools.materials import made_of

BAND = 5  # pixels on both sides of the outline
PRESENT = 0.02  # share of the picture from which on an object is asked for its surface
ABSENT = 0.002  # share of the picture up to which nothing is there


@dataclass(frozen=True)
class Figures:
    """As told in truth.py; None where a clip has nothing to measure it on."""

    structure: float | None
    ghosts: float | None
    ground: float | None
    outline: float | None
    excess: float | None
    drift: float | None
    fidelity: float | None
    sharpness: float | None


class TruthCase(Editable):
    """A clip drawn by kind and number, to be edited through the pack's nodes."""

    def __init__(self, world: World, settings: Settings, clip: Clip) -> None:
        self.clip = clip
        super().__init__(world, settings, clip.pictures().movedim(1, -1), clip.caption)

    @property
    def key(self) -> tuple[str, int]:
        return self.clip.kind, self.clip.number

    def asked(self, surface: str) -> str:
        return self.clip.dressed(surface).caption

    @cache  # noqa: B019 (a case lives as long as its edits)
    def ideal(self, surface: str) -> Tensor:
        """(N, H, W, 3): the true answer."""
        return self.clip.dressed(surface).pictures().movedim(1, -1)

    @cached_property
    def masks(self) -> Tensor:
        return self.clip.masks()

    @cached_property
    def bare(self) -> Tensor:
        """(N, 3, H, W): the ground without the objects."""
        return self.clip.bare()

    @cached_property
    def hidden(self) -> Tensor:
        """(N, H, W) bool: what another object before it covers, with a margin:
        nothing is measured there.
        """
        found = torch.zeros_like(self.masks)
        for i, (scene, t) in enumerate(zip(self.clip.shots, self.clip.times, strict=True)):
            for sprite in scene.sprites()[1:]:
                found[i] |= grown(sprite.mask(t, self.clip.size)[None], 2)[0]
        return found

    @cached_property
    def band(self) -> Tensor:
        """(N, H, W) bool: near the outline, outside what is hidden."""
        return grown(self.masks, BAND) & grown(~self.masks, BAND) & ~self.hidden

    @cached_property
    def ground(self) -> Tensor:
        """(N, H, W) bool: away from all objects."""
        return ~grown(self.masks, BAND) & ~self.hidden

    @cached_property
    def motion(self) -> list[tuple[Tensor, Tensor]]:
        pairs = (self.clip.flow(i, i + 1) for i in range(self.clip.count - 1))
        return [(flow, ~occluded) for flow, occluded in pairs]

    def overlaps(self, clip: Tensor, surface: str) -> Tensor:
        """(N,): IoU of the asked surface with the true outline; where nothing shall be, 1 if
        nothing is there and else 0.
        """
        found = self._made_of(clip, surface) & ~self.hidden
        wanted = self.masks & ~self.hidden
        both, either = (
            (part.flatten(1).float().mean(1)) for part in (found & wanted, found | wanted)
        )
        nothing = wanted.flatten(1).float().mean(1) <= ABSENT
        return torch.where(nothing, (either <= ABSENT).float(), both / either.clamp(min=1e-9))

    def worst_frame(self, clip: Tensor, surface: str) -> int:
        return int(self.overlaps(clip, surface).argmin())

    def figures(self, clip: Tensor, surface: str) -> Figures:
        """Of an edit (N, H, W, 3) to a surface."""
        pictures, ideal = channels_first(clip), channels_first(self.ideal(surface))
        squared = (pictures - ideal).square().mean(1)
        through = channels_first(self.world.reconstruct(self.ideal(surface)))
        seen = [i for i in range(len(pictures)) if self.masks[i].float().mean() > PRESENT]
        return Figures(
            structure=float(self.overlaps(clip, surface).mean()),
            ghosts=self._mean_over(self._made_of(clip, surface).float(), self.ground),
            ground=self._psnr(squared, self.ground),
            outline=self._psnr(squared, self.band),
            excess=float(
                warp_errors(pictures, self.motion).nanmean()
                - warp_errors(through, self.motion).nanmean()
            ),
            drift=self._drift(pictures - ideal),
            fidelity=self.world.sureness(pictures[seen], surface) if seen else None,
            sharpness=float(sharpness(pictures).mean()),
        )

    def _made_of(self, clip: Tensor, surface: str) -> Tensor:
        """(N, H, W) bool."""
        source = channels_first(self.source)
        ground = self.clip.source.ground
        return made_of(channels_first(clip), surface, ground, self.bare, source, self.masks)

    def _mean_over(self, values: Tensor, where: Tensor) -> float | None:
        return float(values[where].mean()) if bool(where.any()) else None

    def _psnr(self, squared: Tensor, where: Tensor) -> float | None:
        mean = self._mean_over(squared, where)
        return None if mean is None else -10 * float(torch.tensor(max(mean, 1e-12)).log10())

    def _drift(self, error: Tensor) -> float | None:
        """Largest channel's change of the ground's mean error (N, 3, H, W) from the first quarter
        of the frames to the last, in 1/255.
        """
        quarter = max(1, len(error) // 4)

        def mean(frames: slice) -> Tensor:
            where = self.ground[frames][:, None]
            return (error[frames] * where).sum((0, 2, 3)) / where.sum().clamp(min=1)

        if not bool(self.ground[:quarter].any()) or not bool(self.ground[-quarter:].any()):
            return None
        return 255 * float((mean(slice(-quarter, None)) - mean(slice(quarter))).abs().max())


def grown(masks: Tensor, pixels: int) -> Tensor:
    """Masks (N, H, W) bool with all that lies within so many pixels."""
    return F.max_pool2d(masks[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0
