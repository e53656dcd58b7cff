"""Rows and columns of a layer's tokens."""

from __future__ import annotations


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Finds rows and columns of a layer's tokens.

    Each level of a UNet halves rows and columns, rounding up.

    Args:
        tokens: P, the layer's number of tokens.
        height: Rows of the latent.
        width: Columns of the latent.

    Returns:
        Rows and columns; their product is P.

    Raises:
        ValueError: If no level has that many tokens.

    Examples:
        >>> token_grid(24, height=8, width=12)
        (4, 6)
    """
    rows, columns = height, width
    while rows * columns > tokens and rows * columns > 1:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens are no level of a {height} x {width} latent")
    return rows, columns
