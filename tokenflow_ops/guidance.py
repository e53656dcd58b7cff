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
    made = sum(
        carry(keyframes, near, _moved_along(tokens, grid, way), grid, weight) for way in ways
    )
    assert isinstance(made, Tensor)
    return made / len(ways)


def _moved_along(
    tokens: tuple[Tensor, Tensor], grid: tuple[int, int], way: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Where places come from if they move as their neighbours that way do, each (n, P).

    Their own matches where there is no such neighbour, or it points out of the picture.
    """
    rows, columns = grid
    down, right = way

    def moved(own: Tensor) -> Tensor:
        here = own.long().unflatten(1, grid)
        beside = here.roll((-down, -right), (1, 2))
        row, column = beside // columns - down, beside % columns - right
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        y, x = (torch.arange(count, device=own.device) for count in grid)
        there = ((y + down) % rows == y + down)[:, None] & ((x + right) % columns == x + right)
        return torch.where(inside & there, row * columns + column, here).flatten(1)

    past, future = tokens
    return moved(past), moved(future)
