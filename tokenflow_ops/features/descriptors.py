"""The layers on whose features the tokens of a layer are matched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# The layers, coarse to fine, whose features side by side tell a token from others.
Descriptor = tuple[str, ...]


def share_by_resolution(
    shapes: Mapping[str, tuple[int, int]], preferred: Iterable[str] = ()
) -> dict[str, str]:
    """Chooses for every layer the layer of its resolution to match on.

    It is the last of the `preferred` ones there, else the last of all.

    Args:
        shapes: By layer, in the order the model runs them: (P, C), tokens and width.
        preferred: Paths of layers.

    Returns:
        By layer the path of the chosen one.

    Examples:
        >>> shapes = {"down": (16, 8), "mid": (4, 8), "up": (16, 8)}
        >>> share_by_resolution(shapes)
        {'down': 'up', 'mid': 'mid', 'up': 'up'}
    """
    preferred = set(preferred)
    chosen: dict[int, str] = {}
    for layer, (tokens, _) in shapes.items():
        if tokens not in chosen or layer in preferred or chosen[tokens] not in preferred:
            chosen[tokens] = layer
    return {layer: chosen[tokens] for layer, (tokens, _) in shapes.items()}


def coarse_to_fine(
    shapes: Mapping[str, tuple[int, int]], decoder: Iterable[str]
) -> dict[str, Descriptor]:
    """Chooses for every layer the decoder's first layers, up to its own resolution.

    One layer of each resolution, the coarser ones first. What the decoder has just brought to a
    resolution still knows the whole picture; its later layers turn to texture, which is everywhere.
    A layer of a resolution that the decoder lacks is matched on itself.

    Args:
        shapes: By layer (P, C), tokens and width.
        decoder: Paths of the decoder's layers, in the order the model runs them.

    Returns:
        By layer its descriptor.

    Examples:
        >>> shapes = {"down": (16, 8), "mid": (1, 8), "up": (4, 8), "top": (16, 8), "end": (16, 8)}
        >>> coarse_to_fine(shapes, decoder=["up", "top", "end"])["down"]
        ('up', 'top')
    """
    first: dict[int, str] = {}
    for layer in decoder:
        first.setdefault(shapes[layer][0], layer)
    return {
        layer: tuple(first[coarser] for coarser in sorted(first) if coarser <= tokens)
        if tokens in first
        else (layer,)
        for layer, (tokens, _) in shapes.items()
    }
