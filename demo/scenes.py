"""The demo model's world: a textured sprite over a textured ground, moving smoothly.

Every scene draws its textures' phases, scales, tints and its light anew, so that an edit made frame
by frame flickers as a real one does. Textures are coarser than two latent tokens (8 pixels of 128):
copies of tokens are copies of patches, anything finer would not be kept. The pose at any time is
known, and with it the true flow.

Pictures are (3, height, width) floats in [0, 1]; coordinates run from -1 to 1 over the shorter
side; times are in any unit, a clip spans about 1.5.
Sizes are one number for square pictures, or (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

COLOURS = {"red": (0.85, 0.12, 0.10), "blue": (0.12, 0.25, 0.85)}
SURFACES = ("marble", "wood", "gold", "lava", "ice", "checkered", *COLOURS)
GROUNDS = ("grass", "sand", "water", "brick")
SHAPES = ("ball", "box", "star", "heart")
CLIP_SEED = 77
CLIP_LENGTH = 1.5
Size = int | tuple[int, int]
TEXTURE_PER_RADIUS = 0.62  # texture units over one unit of the sprite's own coordinates


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand(1, generator=generator).item()


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def grid(size: Size) -> tuple[Tensor, Tensor]:
    """x and y of every pixel, (height, width) each."""
    short = min(sides(size))
    lines = (torch.linspace(-1, 1, side) * ((side - 1) / (short - 1)) for side in sides(size))
    y, x = torch.meshgrid(*lines, indexing="ij")
    return x, y


def value_noise(u: Tensor, v: Tensor, cells: Tensor) -> Tensor:
    """Smooth noise in [0, 1] of period len(cells), one feature per unit."""
    period = cells.shape[0]
    iu, iv = torch.floor(u).long(), torch.floor(v).long()
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    iu, iv, ju, jv = iu % period, iv % period, (iu + 1) % period, (iv + 1) % period
    return (cells[iv, iu] * (1 - fu) + cells[iv, ju] * fu) * (1 - fv) + (
        cells[jv, iu] * (1 - fu) + cells[jv, ju] * fu
    ) * fv


def mix(a: tuple[float, ...] | Tensor, b: tuple[float, ...] | Tensor, share: Tensor) -> Tensor:
    """(3, H, W): colour `a` where `share` is 0, `b` where it is 1."""
    a, b = (c if isinstance(c, Tensor) else torch.tensor(c).view(3, 1, 1) for c in (a, b))
    return a * (1 - share) + b * share


class Texture:
    """One material with its random parameters drawn once; called with coordinates (H, W) it gives a
    picture (3, H, W).
    """

    def __init__(self, name: str, generator: torch.Generator):
        self.paint: Callable[[Texture, Tensor, Tensor], Tensor] = MATERIALS[name]
        self.cells = [torch.rand(16, 16, generator=generator) for _ in range(2)]
        self.scale = uniform(generator, 0.8, 1.3)
        self.angle = uniform(generator, -0.5, 0.5)
        self.offset = uniform(generator, 0, 16), uniform(generator, 0, 16)
        self.phase = uniform(generator, 0, 6)
        self.fineness = uniform(generator)
        self.tint = 0.1 * (torch.rand(3, 1, 1, generator=generator) - 0.5)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        c, s = math.cos(self.angle), math.sin(self.angle)
        return (
            self.paint(self, (x * c - y * s) * self.scale, (x * s + y * c) * self.scale) + self.tint
        ).clamp(0, 1)

    def of(self, name: str) -> Texture:
        """Another material with the same parameters."""
        other = copy(self)
        other.paint = MATERIALS[name]
        return other

    def noise(self, u: Tensor, v: Tensor, octaves: int = 2) -> Tensor:
        """Fractal noise in [0, 1]; each octave twice as fine and half as strong."""
        u, v = u + self.offset[0], v + self.offset[1]
        total = sum(
            0.5**o * value_noise(u * 2**o + 17 * o, v * 2**o + 9 * o, self.cells[o % 2])
            for o in range(octaves)
        )
        return total / (2 - 0.5 ** (octaves - 1))


def plain(colour: tuple[float, ...]) -> Callable[[Texture, Tensor, Tensor], Tensor]:
    return lambda p, u, v: torch.tensor(colour).view(3, 1, 1) * (0.85 + 0.3 * p.noise(u * 2, v * 2))


def marble(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    return mix(
        (0.35, 0.36, 0.42),
        (0.93, 0.92, 0.90),
        torch.sin(u * 3 + p.noise(u * 2.5, v * 2.5) * 6 + p.phase).abs() ** 0.6,
    )


def wood(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    return mix(
        (0.40, 0.22, 0.09),
        (0.72, 0.48, 0.25),
        torch.sin(u * 9 + p.noise(u * 1.5, v * 1.5) * 5 + p.phase) * 0.5 + 0.5,
    )


def gold(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    return mix(
        (0.62, 0.42, 0.06),
        (1.0, 0.88, 0.40),
        torch.sin(v * 2.5 + p.noise(u * 1.5, v * 1.5) * 3 + p.phase) * 0.5 + 0.5,
    )


def lava(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    return mix(
        (0.12, 0.04, 0.03),
        (1.0, 0.45, 0.05),
        (1 - (p.noise(u * 3, v * 3) * 2 - 1).abs() * 3.2).clamp(0, 1),
    )


def ice(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    return mix(
        (0.55, 0.80, 0.92),
        (0.95, 0.99, 1.0),
        (1 - (p.noise(u * 2.5, v * 2.5) * 2 - 1).abs() * 5).clamp(0, 1),
    )


def checkered(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    per_unit = 2.6 + 1.2 * p.fineness
    tile = torch.floor(u * per_unit + p.offset[0]) + torch.floor(v * per_unit + p.offset[1])
    return mix((0.08, 0.08, 0.09), (0.93, 0.93, 0.92), tile % 2)


def grass(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    return mix((0.06, 0.26, 0.05), (0.42, 0.72, 0.20), p.noise(u * 6, v * 3))


def sand(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    ripples = torch.sin(v * 11 + p.noise(u * 2, v * 2) * 5 + p.phase) * 0.25
    return mix(
        (0.72, 0.58, 0.36),
        (0.94, 0.84, 0.62),
        ripples + 0.35 + 0.3 * p.noise(u * 10, v * 10, octaves=1),
    )


def water(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    return mix(
        (0.04, 0.28, 0.55),
        (0.55, 0.83, 0.92),
        (torch.sin(v * 9 + p.noise(u * 2, v * 2) * 7 + p.phase) * 0.5 + 0.5) ** 3,
    )


def brick(p: Texture, u: Tensor, v: Tensor) -> Tensor:
    v = v * 3.2 + p.offset[1]
    row = torch.floor(v)
    u = u * 1.6 + p.offset[0] + 0.5 * (row % 2)
    column = torch.floor(u)
    stones = mix(
        (0.52, 0.18, 0.12), (0.72, 0.32, 0.22), p.cells[0][row.long() % 16, column.long() % 16]
    )
    return mix((0.78, 0.75, 0.70), stones, ((u - column > 0.08) & (v - row > 0.14)).float())


MATERIALS: dict[str, Callable[[Texture, Tensor, Tensor], Tensor]] = {
    **{
        m.__name__: m for m in (marble, wood, gold, lava, ice, checkered, grass, sand, water, brick)
    },
    **{name: plain(colour) for name, colour in COLOURS.items()},
}


def distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance (negative inside) to the outline of a shape about 0.9 in radius; raises
    KeyError for a shape not in SHAPES.
    """
    if shape == "ball":
        return torch.hypot(x, y) - 0.9
    if shape == "box":
        return torch.maximum(x.abs(), y.abs()) - 0.75
    if shape == "star":
        fifth = 2 * math.pi / 5
        towards_tip = (torch.atan2(x, -y) % fifth - fifth / 2).abs() / (fifth / 2)
        return (torch.hypot(x, y) - (0.45 + 0.5 * towards_tip**1.3)) * 0.8
    if shape == "heart":
        x, y = x.abs() * 0.95, 0.62 - y * 0.95
        lobe = torch.hypot(x - 0.325, y - 0.975) - 0.46
        along = 0.5 * (x + y).clamp(min=0)
        sides = torch.minimum(
            torch.hypot(x, y - 1.3), torch.hypot(x - along, y - along)
        ) * torch.sign(x - y)
        return torch.where(x + y > 1.3, lobe, sides)
    raise KeyError(shape)


@dataclass(frozen=True)
class Pose:
    """Where everything is at one time: the sprite's centre, angle (radians) and size, the ground's
    shift in texture units.
    """

    x: float
    y: float
    angle: float
    ground_x: float
    ground_y: float
    size: float


@dataclass
class Scene:
    """One scene; what is not given is drawn from `generator`.

    front: a scene whose sprite passes before this one's; its ground is not seen.
    """

    generator: torch.Generator
    surface: str = ""
    shape: str = ""
    ground: str = ""
    front: Scene | None = None
    size: float = field(init=False)
    ground_scale: float = field(init=False)

    def __post_init__(self) -> None:
        g = self.generator
        self.ground = self.ground or _pick(GROUNDS, g)
        self.surface = self.surface or _pick(SURFACES, g)
        self.shape = self.shape or _pick(SHAPES, g)
        self.ground_texture, self.surface_texture = (
            Texture(self.ground, g),
            Texture(self.surface, g),
        )
        self.light, self.size, self.ground_scale = (
            uniform(g, 0, 2 * math.pi),
            uniform(g, 0.5, 0.72),
            uniform(g, 0.55, 0.9),
        )
        self.start = uniform(g, -0.3, 0.3), uniform(g, -0.3, 0.3), uniform(g, -0.4, 0.4)
        self.velocity = uniform(g, -0.3, 0.3), uniform(g, -0.3, 0.3), uniform(g, -0.6, 0.6)
        self.pan = uniform(g, -0.3, 0.3), uniform(g, -0.3, 0.3)

    def dressed(self, surface: str) -> Scene:
        """The same scene, its sprite of another surface."""
        other = copy(self)
        other.surface, other.surface_texture = surface, self.surface_texture.of(surface)
        return other

    def caption(self) -> str:
        """What the scene shows, whether or not all of it is in the picture."""
        return f"{self.named()} on {self.ground}"

    def named(self) -> str:
        """The sprites in words, the front one first."""
        own = f"a {self.surface} {self.shape}"
        return own if self.front is None else f"{self.front.named()} and {own}"

    def pose(self, t: float) -> Pose:
        """Where everything is at time t."""
        (x, y, angle), (vx, vy, spin) = self.start, self.velocity
        shift = self.pan[0] * t, self.pan[1] * t
        return Pose(
            x + vx * math.sin(1.6 * t),
            y + vy * math.sin(1.3 * t + 0.4),
            angle + spin * t,
            *shift,
            self.size,
        )

    def brightness(self, t: float) -> float:
        """What the whole picture is multiplied by at time t."""
        return 1.0

    def sprite_coordinates(self, t: float, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Picture coordinates to the sprite's own, in which it has unit size and stands still."""
        p = self.pose(t)
        c, s = math.cos(p.angle), math.sin(p.angle)
        x, y = (x - p.x) / p.size, (y - p.y) / p.size
        return x * c + y * s, y * c - x * s

    def outline(self, t: float, x: Tensor, y: Tensor) -> Tensor:
        """Distance of points from the sprite's outline, negative inside, as of `distance` but in
        picture coordinates.
        """
        return distance(self.shape, *self.sprite_coordinates(t, x, y)) * self.pose(t).size

    def render(self, t: float = 0.0, size: Size = 128) -> Tensor:
        """The picture at time t, (3, height, width)."""
        picture = self.ground_at(t, size)
        for scene in self.sprites():
            picture = scene.paint(picture, t)
        light = self.brightness(t)
        return picture if light == 1 else (picture * light).clamp(0, 1)

    def sprites(self) -> tuple[Scene, ...]:
        """This scene's sprite and those before it, the front one last."""
        return (self,) if self.front is None else (self, *self.front.sprites())

    def paint(self, picture: Tensor, t: float) -> Tensor:
        """The sprite and its shadow over a picture (3, height, width)."""
        short = min(picture.shape[1:])
        p = self.pose(t)
        x, y = self.sprite_coordinates(t, *grid((picture.shape[1], picture.shape[2])))
        cover = (0.5 - distance(self.shape, x, y) * p.size * short / 4).clamp(0, 1)
        shadow = self.shadow(t, (picture.shape[1], picture.shape[2]))
        light = 0.84 - 0.38 * (0.7 * (x * math.cos(self.light) + y * math.sin(self.light))).clamp(
            -1, 1
        )
        sprite = (
            self.surface_texture(x * TEXTURE_PER_RADIUS, y * TEXTURE_PER_RADIUS) * light
        ).clamp(0, 1)
        return picture * (1 - shadow * (1 - cover)) * (1 - cover) + sprite * cover

    def shadow(self, t: float, size: Size = 128) -> Tensor:
        """How much of the light the sprite takes from what lies below it, (height, width)."""
        x, y = self.sprite_coordinates(t, *grid(size))
        far = distance(self.shape, x - 0.12, y - 0.16) * self.pose(t).size * min(sides(size))
        return 0.45 * (0.5 - far / 14).clamp(0, 1)

    def bare(self, t: float = 0.0, size: Size = 128) -> Tensor:
        """The ground under the sprites' shadows and without the sprites, (3, height, width)."""
        picture = self.ground_at(t, size)
        for sprite in self.sprites():
            picture = picture * (1 - sprite.shadow(t, size))
        return (picture * self.brightness(t)).clamp(0, 1)

    def ground_at(self, t: float, size: Size = 128) -> Tensor:
        """The ground alone, (3, height, width)."""
        p, (x, y) = self.pose(t), grid(size)
        return self.ground_texture(
            x * self.ground_scale + p.ground_x, y * self.ground_scale + p.ground_y
        )

    def mask(self, t: float, size: Size = 128) -> Tensor:
        """(height, width) bool: where the sprite is seen, which those before it may hide."""
        x, y = grid(size)
        inside = self.outline(t, x, y) < 0
        for scene in self.sprites()[1:]:
            inside &= scene.outline(t, x, y) >= 0
        return inside


def _pick(names: tuple[str, ...], generator: torch.Generator) -> str:
    return names[int(torch.randint(len(names), (1,), generator=generator))]


def demo_clip() -> tuple[Scene, list[float]]:
    """The scene of demo/tokenflow_star.mp4 and its frames' times."""
    return Scene(torch.Generator().manual_seed(CLIP_SEED), "wood", "star", "grass"), [
        CLIP_LENGTH * i / 24 for i in range(24)
    ]


def true_flow(scene: Scene, t0: float, t1: float, size: Size = 128) -> tuple[Tensor, Tensor]:
    """Forward flow of the picture at t0 towards the one at t1, (2, height, width) in pixels (x, y),
    and its occlusion mask, bool.

    Occluded: what leaves the picture, what a sprite covers at t1, and sprites' rims, where one
    pixel shows two motions. A sprite's shadow moves with the sprite over ground that does not:
    there brightness changes although the flow is right.
    """
    x, y = grid(size)
    pixel = 2 / (min(sides(size)) - 1)
    rim = 1.5 * pixel  # a sprite's edge is two pixels soft
    before, after = scene.pose(t0), scene.pose(t1)
    pan = (
        (before.ground_x - after.ground_x) / scene.ground_scale,
        (before.ground_y - after.ground_y) / scene.ground_scale,
    )
    there = torch.stack([x + pan[0], y + pan[1]])
    layer = torch.zeros_like(x)  # 0 for the ground, then the sprites from back to front
    for number, sprite in enumerate(scene.sprites(), 1):
        inside = sprite.outline(t0, x, y) < 0
        there = torch.where(inside, _moved(sprite, t0, t1, x, y), there)
        layer = torch.where(inside, number, layer)
    right, bottom = float(x.max()), float(y.max())
    occluded = (there[0].abs() > right) | (there[1].abs() > bottom)
    for number, sprite in enumerate(scene.sprites(), 1):
        occluded |= sprite.outline(t0, x, y).abs() < rim
        occluded |= (layer < number) & (sprite.outline(t1, *there) < rim)
    return (there - torch.stack([x, y])) / pixel, occluded


def _moved(sprite: Scene, t0: float, t1: float, x: Tensor, y: Tensor) -> Tensor:
    """Where points (x, y) of a sprite at t0 are at t1, (2, height, width)."""
    after = sprite.pose(t1)
    own_x, own_y = sprite.sprite_coordinates(t0, x, y)
    c, s = math.cos(after.angle) * after.size, math.sin(after.angle) * after.size
    return torch.stack([after.x + own_x * c - own_y * s, after.y + own_x * s + own_y * c])
