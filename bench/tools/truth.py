"""A clip of the world whose edits have a true answer, and how far an edit is from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from clips import Clip
from tokenflow_pack.tokenflow_ops.measuring.metrics import sharpness, warp_errors
from torch import Tensor

from bench.tools.case import Editable, Settings, World, channels_first
from bench.tools.known import Known, decibels, mean_over

PRESENT = 0.02  # share of the picture from which on an object is asked for its surface


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
        self.known = Known.of(channels_first(self.source), clip.shots, clip.times, clip.size)

    @property
    def key(self) -> tuple[str, int]:
        return self.clip.kind, self.clip.number

    def asked(self, surface: str) -> str:
        return self.clip.dressed(surface).caption

    @cache  # noqa: B019 (a case lives as long as its edits)
    def ideal(self, surface: str) -> Tensor:
        """(N, H, W, 3): the true answer."""
        return self.clip.dressed(surface).pictures().movedim(1, -1)

    @cache  # noqa: B019
    def shaken(self, surface: str) -> float:
        """The ideal's warp error x1e-3 through the autoencoder."""
        through = channels_first(self.world.reconstruct(self.ideal(surface)))
        return float(warp_errors(through, self.motion).nanmean())

    @cached_property
    def motion(self) -> list[tuple[Tensor, Tensor]]:
        pairs = (self.clip.flow(i, i + 1) for i in range(self.clip.count - 1))
        return [(flow, ~occluded) for flow, occluded in pairs]

    def worst_frame(self, clip: Tensor, surface: str) -> int:
        return int(self.known.overlaps(channels_first(clip), surface).argmin())

    def figures(self, clip: Tensor, surface: str) -> Figures:
        """Of an edit (N, H, W, 3) to a surface."""
        pictures, known = channels_first(clip), self.known
        error = pictures - channels_first(self.ideal(surface))
        seen = [i for i, mask in enumerate(known.masks) if mask.float().mean() > PRESENT]
        return Figures(
            structure=float(known.overlaps(pictures, surface).mean()),
            ghosts=mean_over(known.made_of(pictures, surface).float(), known.away),
            ground=decibels(error, known.away),
            outline=decibels(error, known.band),
            excess=float(warp_errors(pictures, self.motion).nanmean()) - self.shaken(surface),
            drift=known.drift(error),
            fidelity=self.world.sureness(pictures[seen], surface) if seen else None,
            sharpness=float(sharpness(pictures).mean()),
        )
