"""Clips of the world by kind and number, with their true motion, true outline and ideal edit.

A kind says what makes a clip hard. A number draws all else: nothing is picked. The ideal edit to
another surface is the same scene drawn anew with that surface: the same draws, the same poses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from scenes import CLIP_LENGTH, SURFACES, Pose, Scene, Size, true_flow, uniform
from torch import Tensor
from torch.nn import functional as F

# Of a sprite's size: its centre so far beyond the border is out of the picture, shadow included.
OUTSIDE = 1.05


class Still(Scene):
    """Nothing moves."""

    def pose(self, t: float) -> Pose:
        return super().pose(0)


class Entering(Scene):
    """The sprite comes from the left, and is absent in the first frames."""

    def pose(self, t: float) -> Pose:
        pose, share = super().pose(t), self.share(t)
        outside = -1 - OUTSIDE * self.size - 0.5
        return replace(pose, x=outside + (self.start[0] - outside) * share)

    def share(self, t: float) -> float:
        """Of the way that is done at time t."""
        return t / CLIP_LENGTH


class Leaving(Entering):
    """The sprite goes to the left, and is absent in the last frames."""

    def share(self, t: float) -> float:
        return 1 - t / CLIP_LENGTH


class Zooming(Scene):
    """The sprite grows from 0.42 to 0.87 in radius, or shrinks as much."""

    def pose(self, t: float) -> Pose:
        share = t / CLIP_LENGTH
        grows = self.velocity[0] > 0
        return replace(super().pose(t), size=0.42 + 0.45 * (share if grows else 1 - share))


class Turning(Scene):
    """The sprite turns once."""

    def pose(self, t: float) -> Pose:
        turn = math.copysign(2 * math.pi, self.velocity[2]) * t / CLIP_LENGTH
        return replace(super().pose(t), angle=self.start[2] + turn)


class Panning(Scene):
    """The ground moves by twice the picture in the length of the clip:
    half of it is new after a quarter.
    """

    def pose(self, t: float) -> Pose:
        way = math.copysign(4 * self.ground_scale, self.pan[0]) * t / CLIP_LENGTH
        return replace(super().pose(t), ground_x=way)


class Lit(Scene):
    """The light falls to 0.65 and rises to 1.2, or the other way round."""

    def brightness(self, t: float) -> float:
        share = t / CLIP_LENGTH if self.velocity[1] > 0 else 1 - t / CLIP_LENGTH
        return 0.65 + 0.55 * share


class Passing(Scene):
    """The sprite that passes before another one, from one side to the other."""

    def pose(self, t: float) -> Pose:
        side = math.copysign(1.5, self.velocity[0])
        return replace(super().pose(t), x=side * (2 * t / CLIP_LENGTH - 1), size=0.4)


KINDS: dict[str, type[Scene]] = {
    "plain": Scene,
    "enter": Entering,
    "leave": Leaving,
    "cut": Scene,
    "zoom": Zooming,
    "turn": Turning,
    "pan": Panning,
    "pass": Scene,
    "light": Lit,
    "flaw": Scene,
    "still": Still,
}


@dataclass(frozen=True)
class Flaw:
    """One frame that is blurred by motion, or noisy. strength: of the noise, None for blur."""

    frame: int
    strength: float | None

    def applied(self, picture: Tensor) -> Tensor:
        """A picture (3, H, W) with it."""
        if self.strength is None:
            return F.avg_pool2d(F.pad(picture[None], (4, 4, 0, 0), mode="replicate"), (1, 9), 1)[0]
        noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(self.frame))
        return (picture + self.strength * noise).clamp(0, 1)


@dataclass(frozen=True)
class Clip:
    """A clip of `count` frames. kind: one of KINDS. surface: what its sprite is made of, None for
    what the number draws.
    """

    kind: str
    number: int
    count: int = 16
    size: Size = 128
    surface: str | None = None

    def dressed(self, surface: str) -> Clip:
        """The ideal edit to a surface."""
        return replace(self, surface=surface)

    @cached_property
    def source(self) -> Scene:
        """The first shot with the surface that the number draws."""
        return self._draw(0, None)

    @cached_property
    def shots(self) -> list[Scene]:
        """The scene of each frame; there are two in a clip with a cut."""
        first = self._draw(0, self.surface)
        if self.kind != "cut":
            return [first] * self.count
        second = self._draw(1, self.surface)
        return [first if i < self.cut_at else second for i in range(self.count)]

    @property
    def cut_at(self) -> int:
        """The first frame of the second shot: never one of the usual intervals' multiples."""
        return self.count // 2 + (3 if self.number % 2 else -3)

    @property
    def times(self) -> list[float]:
        """Of each frame."""
        return [CLIP_LENGTH * i / max(1, self.count - 1) for i in range(self.count)]

    @cached_property
    def flaw(self) -> Flaw | None:
        """What one frame suffers from."""
        if self.kind != "flaw":
            return None
        generator = torch.Generator().manual_seed(self.number)
        return Flaw(
            2 + int(uniform(generator, 0, self.count - 4)), 0.15 if self.number % 2 else None
        )

    @property
    def caption(self) -> str:
        """What the clip shows."""
        return self.shots[0].caption()

    def pictures(self) -> Tensor:
        """(N, 3, H, W)."""
        found = [
            scene.render(t, self.size) for scene, t in zip(self.shots, self.times, strict=True)
        ]
        return torch.stack(
            [
                self.flaw.applied(p) if self.flaw and i == self.flaw.frame else p
                for i, p in enumerate(found)
            ]
        )

    def bare(self) -> Tensor:
        """The ground under the objects' shadows, without the objects, (N, 3, H, W)."""
        return torch.stack(
            [scene.bare(t, self.size) for scene, t in zip(self.shots, self.times, strict=True)]
        )

    def masks(self) -> Tensor:
        """(N, H, W) bool, where the sprite is seen."""
        return torch.stack(
            [scene.mask(t, self.size) for scene, t in zip(self.shots, self.times, strict=True)]
        )

    def flow(self, first: int, second: int) -> tuple[Tensor, Tensor]:
        """As of `scenes.true_flow`, from one frame to another;
        nothing of a frame is seen in another shot.
        """
        before, after = self.shots[first], self.shots[second]
        flow, occluded = true_flow(before, self.times[first], self.times[second], self.size)
        return flow, occluded if before is after else torch.ones_like(occluded)

    def surfaces(self, count: int) -> list[str]:
        """Surfaces to edit to, drawn from all that the clip does not show."""
        shown = {sprite.surface for sprite in self.source.sprites()}
        others = [name for name in SURFACES if name not in shown]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(self.number))
        return [others[i] for i in order[:count]]

    def _draw(self, shot: int, surface: str | None) -> Scene:
        """The scene of a shot.

        Words come first, so that they are the same in all shots and for all surfaces.
        """
        words = Scene(torch.Generator().manual_seed(self.number))
        draws = torch.Generator().manual_seed(1000 * (shot + 1) + self.number)
        scene = KINDS[self.kind](draws, surface or words.surface, words.shape, words.ground)
        if self.kind == "pass":
            others = [name for name in SURFACES if name != words.surface]
            seen = others[int(uniform(draws, 0, len(others)))]
            shape = "ball" if words.shape == "box" else "box"
            scene.front = Passing(draws, seen, shape, words.ground)
        return scene
