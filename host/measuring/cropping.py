"""What VAE Encode cuts off: of pictures whose sides are no multiples of its factor it takes the
middle. Here others are cut like them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ...tokenflow_ops import Inversion
from ..validation.errors import NodeError

LARGEST_FACTOR = (
    8  # pixels of a latent pixel's side, in the autoencoders of the models that the pack takes
)

Size = tuple[int, int]  # height and width


def size_of(pictures: Tensor) -> Size:
    """Of pictures (N, H, W, C)."""
    return pictures.shape[1], pictures.shape[2]


def crop(pictures: Tensor, size: Size, first: int = 1) -> Tensor:
    """The middle of pictures, or of anything that has height and width at the dimensions `first`
    and `first + 1`, as the host cuts it.
    """
    for dim, length in enumerate(size, first):
        pictures = pictures.narrow(dim, (pictures.shape[dim] - length) // 2, length)
    return pictures


def encoded_size(size: Size, latents: Size) -> Size | None:
    """What of pictures of a size is in their latents of h x w; None if they cannot be these
    pictures' latents.

    The factor is taken for a power of two, as autoencoders have it.
    """
    most = min(side // small for side, small in zip(size, latents, strict=True))
    factor = 1 << (most.bit_length() - 1) if most else 0
    if not factor or any(
        side // factor != small for side, small in zip(size, latents, strict=True)
    ):
        return None
    return latents[0] * factor, latents[1] * factor


def as_encoded(node: str, frames: Tensor, inversion: Inversion) -> tuple[Tensor, str]:
    """What of the source's frames (N, H, W, C) was inverted, and what was cut off in words.

    Raises: NodeError if frames of this size were not inverted.
    """
    height, width = inversion.latents.shape[-2:]
    size = encoded_size(size_of(frames), (height, width))
    if size is None:
        found = f"frames of {in_words(size_of(frames))} pixels, which are not encoded as the inverted latents of {width} x {height}."
        raise NodeError(
            node, "frames", found, "Connect the frames that were encoded, as VAE Encode got them."
        )
    return crop(frames, size), describe_crop("frames", size_of(frames), size)


def mask_as_encoded(mask: Tensor, inversion: Inversion) -> tuple[Tensor, str]:
    """What of a mask (..., H, W), drawn on the source's frames, was inverted, and what was cut off
    in words.

    Masks of other sizes stay whole: the host scales them.
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
    """To what clips by name are to be cut if they are a source, the first one, and what became of
    it through an autoencoder.

    Returns: the size, or the name of the first clip that differs from the source by more than is
    cut off.
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
    """What was cut off, in words; nothing if nothing was."""
    return (
        ""
        if given == used
        else f"{name}: the middle {in_words(used)} of {in_words(given)} pixels, as VAE Encode crops"
    )


def in_words(size: Size) -> str:
    """As users know it, width first."""
    return f"{size[1]} x {size[0]}"
