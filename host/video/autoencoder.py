"""The host's VAE on some frames, with errors in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy import model_management
from torch import Tensor

from ..measuring.cropping import LARGEST_FACTOR
from ..memory import is_oom
from ..validation.errors import NodeError


def factor_of(vae: Any) -> int:
    """Returns how many pixels of a side a latent pixel has; VAE Encode cuts off what is over."""
    told = getattr(vae, "spacial_compression_encode", None)
    return int(told()) if told else LARGEST_FACTOR


def encode(node: str, vae: Any, frames: Tensor) -> Tensor:
    """Encodes frames.

    Args:
        node: The node's name, for errors.
        vae: The host's VAE.
        frames: (n, H, W, 3) in [0, 1].

    Returns:
        (n, C, h, w), or (n, C, 1, h, w) of autoencoders that take pictures as videos of one frame.

    Raises:
        NodeError: If it cannot encode them, or not one by one.
    """

    def run() -> Tensor:
        latents: Tensor = vae.encode(frames)
        if len(latents) != len(frames):
            raise ValueError(f"{len(latents)} latents of {len(frames)} frames, as a video's VAE")
        return latents

    remedy = "Connect the VAE of an image model, whose sides the frames are large enough for."
    return _tried(node, "it cannot encode the frames", run, remedy)


def decode(
    node: str,
    vae: Any,
    samples: Tensor,
    latents: str = "the latents",
    remedy: str = "Connect the VAE that the frames were encoded with.",
) -> Tensor:
    """Decodes latents.

    Args:
        node: The node's name, for errors.
        vae: The host's VAE.
        samples: As on a LATENT socket.
        latents: What they are in words, for errors.
        remedy: What to do where it fails.

    Returns:
        The pictures, (n, H, W, 3) in [0, 1] on the CPU.

    Raises:
        NodeError: If it cannot decode them.
    """

    def run() -> Tensor:
        pictures: Tensor = vae.decode(samples).float().cpu()
        if samples.ndim == 5 and pictures.ndim == 5:  # videos of one frame
            pictures = pictures.flatten(0, 1)
        if pictures.ndim != 4:
            raise ValueError(f"pictures of shape {tuple(pictures.shape)}")
        return pictures

    return _tried(node, f"it cannot decode {latents}", run, remedy).clamp(0, 1)


def _tried(node: str, failure: str, run: Callable[[], Tensor], remedy: str) -> Tensor:
    """Raises: NodeError for whatever a VAE of another kind does."""
    try:
        result = run()
        if not torch.isfinite(result).all():
            raise ValueError("NaN or infinite values")
        return result
    except model_management.InterruptProcessingException:
        raise
    except Exception as error:
        if is_oom(error):
            raise
        found = f"{failure} ({type(error).__name__}: {error})."
        raise NodeError(node, "vae", found, remedy) from error
