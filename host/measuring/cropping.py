"""What VAE Encode cuts off, so that other pictures can be cut like those that were encoded.

Of pictures whose sides are no multiples of its factor VAE Encode takes the middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ...tokenflow_ops import Inversion
from ..validation.errors import NodeError

# Pixels of a latent pixel's side, in the autoencoders of the models that the pack takes.
LARGEST_FACTOR = 8

Size = tuple[int, int]  # height and width


def size_of(pictures: Tensor) -> Size:
    """Returns the size of pictures (N, H, W, C)."""
    return pictures.shape[1], pictures.shape[2]


def crop(pictures: Tensor, size: Size, first: int = 1) -> Tensor:
    """Takes the middle of pictures, as the host cuts it.

    Args:
        pictures: Pictures, or anything else that has height and width.
        size: Height and width of the middle.
        first: The dimension that is the height; the next one is the width.

    Returns:
        The middle.
    """
    for dim, length in enumerate(size, first):
        pictures = pictures.narrow(dim, (pictures.shape[dim] - length) // 2, length)
    return pictures


def encoded_size(size: Size, latents: Size) -> Size | None:
    """Finds out what part of pictures is in their latents.

    The factor is taken for a power of two, as autoencoders have it.

    Args:
        size: The pictures' height and width.
        latents: The latents' height and width.

    Returns:
        Height and width of that part, the middle; None if they cannot be these pictures' latents.
    """
    most = min(side // small for side, small in zip(size, latents, strict=True))
    factor = 1 << (most.bit_length() - 1) if most else 0
    if not factor or any(
        side // factor != small for side, small in zip(size, latents, strict=True)
    ):
        return None
    return latents[0] * factor, latents[1] * factor


def as_encoded(node: str, frames: Tensor, inversion: Inversion) -> tuple[Tensor, str]:
    """Cuts the source's frames to what was inverted of them.

    Args:
        node: The node's name, for errors.
        frames: The source's frames, (N, H, W, C).
        inversion: Their inversion.

    Returns:
        The frames, and what was cut off in words.

    Raises:
        NodeError: If frames of this size were not inverted.
    """
    size = encoded_part(node, "frames", size_of(frames), inversion)
    return crop(frames, size), describe_crop("frames", size_of(frames), size)


def encoded_part(node: str, socket: str, size: Size, inversion: Inversion) -> Size:
    """Finds out what part of the source's frames was inverted.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        size: The frames' height and width.
        inversion: Their inversion.

    Returns:
        Height and width of that part, the middle.

    Raises:
        NodeError: If frames of this size were not inverted.
    """
    height, width = inversion.latents.shape[-2:]
    part = encoded_size(size, (height, width))
    if part is None:
        found = (
            f"frames of {in_words(size)} pixels, which are not encoded as "
            f"the inverted latents of {width} x {height}."
        )
        remedy = "Connect the frames that were encoded, as VAE Encode got them."
        raise NodeError(node, socket, found, remedy)
    return part


def mask_as_encoded(mask: Tensor, inversion: Inversion) -> tuple[Tensor, str]:
    """Cuts a mask, drawn on the source's frames, to what was inverted of them.

    Masks of other sizes stay whole: the host scales them.

    Args:
        mask: (..., H, W).
        inversion: The source's inversion.

    Returns:
        The mask, and what was cut off in words.
    """
    height, width = inversion.latents.shape[-2:]
    drawn = mask.shape[-2], mask.shape[-1]
    size = encoded_size(drawn, (height, width))
    return (
        (mask, "")
        if size is None
        else (crop(mask, size, mask.ndim - 2), describe_crop("mask", drawn, size))
    )


def common_size(sizes: Mapping[str, Size]) -> Size | str:
    """Finds the size to cut clips to, so that an autoencoder's crop does not count.

    Args:
        sizes: Sizes of clips by name: the source, first, and what became of it
            through an autoencoder.

    Returns:
        The size, or the name of the first clip that differs from the source by more than
        is cut off.
    """
    source = next(iter(sizes.values()))
    common = source
    for name, size in sizes.items():
        common = min(common[0], size[0]), min(common[1], size[1])
        factor = math.gcd(*common, LARGEST_FACTOR)
        if any(
            side - least >= factor
            for other in (source, size)
            for side, least in zip(other, common, strict=True)
        ):
            return name
    return common


def describe_crop(name: str, given: Size, used: Size) -> str:
    """Says what was cut off.

    Args:
        name: What was cut, in words.
        given: Height and width before.
        used: Height and width after.

    Returns:
        The words; "" if nothing was cut off.
    """
    return (
        ""
        if given == used
        else f"{name}: the middle {in_words(used)} of {in_words(given)} pixels, as VAE Encode crops"
    )


def in_words(size: Size) -> str:
    """Writes a size as users know it, width first."""
    return f"{size[1]} x {size[0]}"
