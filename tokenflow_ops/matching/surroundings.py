"""Tokens described by what is around them and where they are.

A UNet's features know their surroundings by its convolutions. A transformer's do not, and few
channels with large values, the same in all tokens, drown the others (Gan et al., 2505.18584). So
channels are standardised over each frame, a token is described together with its eight neighbours,
and tokens far away count as less alike.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Channels that are left of a token's features, by a random projection, which keeps their products.
CHANNELS = 96
# How fast alikeness falls with distance: over so large a share of the picture's sides.
REACH = 0.25


def with_surroundings(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Describes tokens by their neighbourhood and their place.

    Args:
        features: (n, P, C).
        grid: Rows and columns of the P tokens.

    Returns:
        (n, P, D) of unit length but for rounding, for a search by cosine.

    Examples:
        >>> with_surroundings(torch.randn(2, 12, 200), (3, 4)).shape
        torch.Size([2, 12, 871])
    """
    rows, columns = grid
    tokens = features.float()
    spread = tokens.std(1, keepdim=True, correction=0).clamp(min=1e-6)
    tokens = (tokens - tokens.mean(1, keepdim=True)) / spread
    if tokens.shape[-1] > CHANNELS:
        tokens = tokens @ _projection(tokens.shape[-1]).to(tokens)
    plane = F.normalize(tokens, dim=-1).transpose(1, 2).unflatten(2, (rows, columns))
    around = F.unfold(F.pad(plane, (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2)
    place = _places(rows, columns).to(tokens).expand(len(tokens), -1, -1)
    joined = torch.cat([F.normalize(around, dim=-1), place], -1)
    return (joined / 2**0.5).to(features.dtype)


@cache
def _projection(channels: int) -> Tensor:
    """(C, CHANNELS), the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(channels, CHANNELS, generator=generator) / CHANNELS**0.5


def _places(rows: int, columns: int) -> Tensor:
    """(P, rows + columns) of unit length: products fall with the distance of two tokens."""

    def along(count: int) -> Tensor:
        at = torch.arange(count) / max(1, count)
        return F.normalize((-(((at[:, None] - at) / REACH) ** 2)).exp(), dim=-1)

    down = along(rows)[:, None].expand(rows, columns, rows)
    across = along(columns)[None].expand(rows, columns, columns)
    return torch.cat([down, across], -1).flatten(0, 1) / 2**0.5
