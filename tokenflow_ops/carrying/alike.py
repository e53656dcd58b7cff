"""Means over what belongs together in a picture: pixels nearby of a like colour."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REACH, EVERY = 5, 2  # pixels on each side, and the distance of those that count
UNLIKE = 0.08  # mean difference of two colours, in [0, 1], of which little is taken over


class Alike:
    """Weighted means around every pixel of a picture, by how like its neighbours are.

    Args:
        picture: (3, h, w) in [0, 1].
    """

    def __init__(self, picture: Tensor) -> None:
        unlike = torch.stack([(one - picture).abs().mean(0) for one in _around(picture)])
        weights = torch.exp(-((unlike / UNLIKE) ** 2))
        self.weights = weights / weights.sum(0)

    def mean(self, values: Tensor) -> Tensor:
        """The mean around every pixel.

        Args:
            values: (h, w).

        Returns:
            (h, w).
        """
        return (self.weights * torch.stack(_around(values[None]))[:, 0]).sum(0)


def _around(values: Tensor) -> list[Tensor]:
    """The values (C, h, w) of each pixel's neighbours, itself among them."""
    height, width = values.shape[1:]
    padded = F.pad(values[None], (REACH,) * 4, mode="replicate")[0]
    steps = range(REACH % EVERY, 2 * REACH + 1, EVERY)
    return [padded[:, y : y + height, x : x + width] for y in steps for x in steps]
