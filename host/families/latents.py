"""Latents between LATENT sockets, the host's sampling and the pack.

The host begins a run with a sum of the latents that it is given and of noise, both scaled. In
models whose noise is over the signal the latents' scale is 1: noisy latents go in as they are, and
no noise. In flow models it is 1 - sigma, and 0 at the schedule's end.

Models whose autoencoder is a video's (Qwen-Image) have latents (N, C, 1, h, w): pictures are videos
of one frame. In the pack all latents are (N, C, h, w).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scales(model: Any, sigma: Tensor) -> tuple[float, float]:
    """Asks the host how it scales latents and noise where a run starts.

    Args:
        model: The ModelPatcher.
        sigma: The run's first noise level, ().

    Returns:
        What latents are multiplied by, and noise.
    """
    scaled = model.get_model_object("model_sampling").noise_scaling
    one, zero = torch.ones(1), torch.zeros(1)
    sigma = sigma.detach().cpu()
    return float(scaled(sigma, zero.clone(), one)), float(scaled(sigma, one.clone(), zero))


def of_frames(latents: Tensor) -> Tensor:
    """Makes latents of one-frame videos, (N, C, 1, h, w), those of pictures; others are as is."""
    return latents.squeeze(2) if latents.ndim == 5 else latents


def shaped_as(latents: Tensor, like: Tensor) -> Tensor:
    """Undoes `of_frames`.

    Args:
        latents: (N, C, h, w).
        like: Latents as the host has them.

    Returns:
        (N, C, h, w) or (N, C, 1, h, w).
    """
    return latents.unsqueeze(2) if like.ndim == 5 and latents.ndim == 4 else latents


def for_host(model: Any, latents: Tensor) -> Tensor:
    """Gives latents the dimensions that a model's have on the host.

    Args:
        model: The ModelPatcher.
        latents: (N, C, h, w).

    Returns:
        (N, C, h, w) or (N, C, 1, h, w).
    """
    dimensions = getattr(model.get_model_object("latent_format"), "latent_dimensions", 2)
    return latents.unsqueeze(2) if dimensions == 3 and latents.ndim == 4 else latents


def to_latent(model: Any, latents: Tensor) -> Tensor:
    """Makes what a LATENT socket carries of latents in the model's latent space.

    Args:
        model: The ModelPatcher.
        latents: (N, C, h, w).

    Returns:
        The samples, as the model's VAE takes them.
    """
    found: Tensor = model.get_model_object("latent_format").process_out(for_host(model, latents))
    return found


def from_latent(model: Any, samples: Tensor) -> Tensor:
    """Brings what a LATENT socket carries into the model's latent space.

    Args:
        model: The ModelPatcher.
        samples: (N, C, h, w).

    Returns:
        (N, C, h, w).
    """
    into = model.get_model_object("latent_format").process_in
    return of_frames(into(for_host(model, samples)))


def as_latent(model: Any, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Makes the LATENT from which a run without added noise starts at noisy latents.

    Args:
        model: The ModelPatcher.
        noisy: The latents at a noise level in the model's latent space, (N, C, h, w).
        sigma: That level, ().

    Returns:
        The samples. Where the host would multiply them by 0 they are as they are; `start_noise`
        brings them in.
    """
    kept, _ = scales(model, sigma)
    return to_latent(model, noisy / (kept or 1.0))


def start_noise(model: Any, sigmas: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
    """Makes the noise that the host adds where a run starts.

    Where a schedule begins at pure noise, a run without added noise would begin at zero. What is
    connected then is the noisy latents themselves.

    Args:
        model: The ModelPatcher.
        sigmas: The run's noise levels, (S+1,).
        noise: What was asked for, (N, C, h, w).
        latents: What was connected, in the model's latent space, (N, C, h, w).

    Returns:
        (N, C, h, w).
    """
    if bool(noise.any()):
        return noise
    kept, added = scales(model, sigmas[0])
    return noise if kept else latents.to(noise) / added
