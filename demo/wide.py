"""The wide world: what the model is trained on and the judge knows.

It is more than the plain clips show.
"""

from __future__ import annotations

import math

import torch
from scenes import Scene, uniform

# Shares of the scenes: objects anywhere, also out of the picture; of any size; at any angle; a
# second object in front.
ANYWHERE, ANY_SIZE, ANY_ANGLE, TWO = 0.2, 0.25, 0.1, 0.25


def wide_scene(generator: torch.Generator) -> Scene:
    """A scene whose object may be anywhere.

    It may be cut by the border or absent, of any size, at any angle, or behind another one.
    """
    scene, kind = Scene(generator), uniform(generator)
    if kind < ANYWHERE:
        scene.start = (
            uniform(generator, -1.8, 1.8),
            uniform(generator, -1.8, 1.8),
            uniform(generator, 0, 2 * math.pi),
        )
    elif kind < ANYWHERE + ANY_SIZE:
        scene.size = uniform(generator, 0.3, 0.95)
        scene.start = (
            uniform(generator, -0.5, 0.5),
            uniform(generator, -0.5, 0.5),
            uniform(generator, 0, 2 * math.pi),
        )
    elif kind < ANYWHERE + ANY_SIZE + ANY_ANGLE:
        scene.start = scene.start[0], scene.start[1], uniform(generator, 0, 2 * math.pi)
    if uniform(generator) < TWO:
        scene.front = Scene(generator)
        scene.front.size = uniform(generator, 0.3, 0.6)
        scene.front.start = (
            uniform(generator, -1.2, 1.2),
            uniform(generator, -1.2, 1.2),
            uniform(generator, 0, 2 * math.pi),
        )
    return scene
