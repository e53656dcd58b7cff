"""Guidance that frames between keyframes take from them."""

from __future__ import annotations

import torch
from torch import Tensor

from .keyframes import Neighbours
from .matching.correspondence import carry

AROUND = (-1, 0, 1)


def carry_guidance(
    keyframes: Tensor,
    near: Neighbours,
    tokens: tuple[Tensor, Tensor],
    grid: tuple[int, int],
    weight: Tensor | None = None,
) -> Tensor:
    """Makes frames' guidance of the keyframes', with a vote of the matches around every place.

    Not in the paper. Guidance is multiplied by its scale, and with it the seams between patches
    that come from different places: they would be grain. So every patch is the mean of what its own
    match and its eight neighbours' say of it, as patch-based synthesis votes (Simakov et al., CVPR
    2008). Where neighbours move together, all nine say the same.

    Args:
        keyframes: By how much their denoised pictures differ, (k, C, h, w).
        near: As `carry` takes it.
        tokens: Past and future token indices, each (n, P).
        grid: Rows and columns of the P tokens.
        weight: As `carry` takes it.

    Returns:
        (n, C, h, w).
    """
    ways = [(down, right) for down in AROUND for right in AROUND]
    sides = tuple(
        torch.cat([_moved(part.to(keyframes.device), grid, way) for way in ways]) for part in tokens
    )
    weight = near.weight if weight is None else weight
    count = len(ways)
    often = Neighbours(*(part.repeat(count) for part in near.held()))
    votes = carry(
        keyframes,
        often,
        (sides[0], sides[1]),
        grid,
        weight.repeat(count, *[1] * (weight.ndim - 1)),
    )
    return votes.unflatten(0, (count, -1)).mean(0)


def _moved(tokens: Tensor, grid: tuple[int, int], way: tuple[int, int]) -> Tensor:
    """Where places come from if they move as their neighbours that way do, (n, P).

    tokens: their own matches, (n, P), which they keep where there is no such neighbour or it points
    out of the picture.
    """
    (rows, columns), (down, right) = grid, way
    own = tokens.long().unflatten(1, grid)
    beside = own.roll((-down, -right), (1, 2))
    row, column = beside // columns - down, beside % columns - right
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    y, x = (torch.arange(count, device=own.device) for count in grid)
    there = ((y + down) % rows == y + down)[:, None] & ((x + right) % columns == x + right)
    return torch.where(inside & there, row * columns + column, own).flatten(1)
