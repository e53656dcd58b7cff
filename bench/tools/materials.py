"""What every pixel of an edit is made of, where the truth about the clip is known.

A pixel is the asked surface's if that explains its colour better than all else that may be there:
the very ground of the clip, some ground of its kind, the unchanged source, or anything. Colours of
a surface or a kind of ground are counted on renders; of what is known exactly only the
autoencoder's error is allowed.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from scenes import GROUNDS, TEXTURE_PER_RADIUS, Texture, grid, uniform
from torch import Tensor
from torch.nn import functional as F

BINS = 32  # of each colour channel
DRAWS = 48  # textures that colours are counted on
SPREAD = 1.3  # bins that a counted colour is spread over
EXACT = 0.02  # deviation of a known colour through the autoencoder
ANYTHING = 0.3  # density of a colour that nothing explains, of 1 for all alike
FLOOR = 0.1  # so that a single odd pixel does not outweigh its neighbours
DIM = (1.0, 1.0, 1.0, 1.0, 0.8, 0.65, 0.55)  # grounds lie in shadow here and there
UNLIT, LIT = 0.84, 0.38  # of `Scene.paint`


def made_of(
    pictures: Tensor, surface: str, ground: str, bare: Tensor, source: Tensor, masks: Tensor
) -> Tensor:
    """Finds the pixels that are of a surface.

    Args:
        pictures: An edit, (N, 3, H, W), 0 to 1.
        surface: What the object was to become.
        ground: The kind of ground.
        bare: The ground without objects, under their shadows, (N, 3, H, W).
        source: The source, (N, 3, H, W).
        masks: Where the object is seen, (N, H, W) bool.

    Returns:
        (N, H, W) bool.
    """
    wanted = _around(_counted(pictures, surface))
    # An unchanged object is known by a whole patch: single pixels may be alike by chance.
    unchanged = _within(_exactly(pictures, source), masks)
    others = [
        _around(_counted(pictures, ground)),
        _around(_exactly(pictures, bare)),
        unchanged,
        torch.full_like(wanted, math.log(ANYTHING + FLOOR)),
    ]
    return wanted > torch.stack(others).amax(0)


def _around(density: Tensor) -> Tensor:
    """Log densities (N, H, W), mean over 3 x 3 pixels."""
    values = (density + FLOOR).log()[:, None]
    return F.avg_pool2d(values, 3, 1, 1, count_include_pad=False)[:, 0]


def _within(density: Tensor, masks: Tensor) -> Tensor:
    """Log densities (N, H, W), mean over those of 9 x 9 pixels in a mask; very low outside."""
    inside, values = masks[:, None].float(), (density + FLOOR).log()[:, None]
    mean = F.avg_pool2d(values * inside, 9, 1, 4) / F.avg_pool2d(inside, 9, 1, 4).clamp(min=1e-6)
    return torch.where(masks, mean[:, 0], -99.0)


def _exactly(pictures: Tensor, known: Tensor) -> Tensor:
    """Densities (N, H, W) of colours that are known but for a small error."""
    squared = (pictures - known).square().sum(1)
    return torch.exp(-0.5 * squared / EXACT**2) / ((2 * math.pi) ** 1.5 * EXACT**3)


def _counted(pictures: Tensor, material: str) -> Tensor:
    """Densities (N, H, W) of colours by how often a material has them."""
    red, green, blue = (pictures.clamp(0, 1) * (BINS - 1)).round().long().unbind(1)
    return _colours(material)[red, green, blue]


@cache
def _colours(material: str) -> Tensor:
    """Density of a material's colours, (BINS, BINS, BINS), 1 on average."""
    generator = torch.Generator().manual_seed(5)
    counts = torch.zeros(BINS**3)
    for number in range(DRAWS):
        for picture in _renders(material, number, generator):
            for seen in (picture, F.avg_pool2d(picture[None], 3, 1)[0]):
                red, green, blue = (seen * (BINS - 1)).round().long().flatten(1)
                places = (red * BINS + green) * BINS + blue
                counts.index_add_(0, places, torch.ones(len(places)))
    bell = torch.exp(-0.5 * (torch.arange(-4, 5) / SPREAD) ** 2)
    density = counts.view(1, 1, BINS, BINS, BINS)
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = 9, 4
        density = F.conv3d(density, (bell / bell.sum()).view(shape), padding=padding)
    return density[0, 0] / density.mean()


def _renders(material: str, number: int, generator: torch.Generator) -> list[Tensor]:
    """Pictures (3, h, w) of a material in several lights."""
    texture = Texture(material, generator)
    if material in GROUNDS:
        scale = uniform(generator, 0.55, 0.9)
        x, y = grid(48)
        picture = texture(x * scale, y * scale)
        return [(picture * light).clamp(0, 1) for light in DIM]
    x, y = grid(32)
    picture = texture(x * TEXTURE_PER_RADIUS, y * TEXTURE_PER_RADIUS)
    angles = (0.3 * number + quarter * math.pi / 2 for quarter in range(4))
    slopes = ((0.7 * (x * math.cos(a) + y * math.sin(a))).clamp(-1, 1) for a in angles)
    return [(picture * (UNLIT - LIT * slope)).clamp(0, 1) for slope in slopes]
