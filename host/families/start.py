"""How a run starts at noisy latents that are there already, with every kind of noise schedule.

The host begins with a sum of the latents that it is given and of noise, both scaled. In models
whose noise is over the signal the latents' scale is 1: noisy latents go in as they are, and no
noise. In flow models it is 1 - sigma, and 0 at the schedule's end.
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


def as_latent(model: Any, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Makes the LATENT from which a run without added noise starts at noisy latents.

    Args:
        model: The ModelPatcher.
        noisy: The latents at a noise level in the model's latent space, (N, C, h, w).
        sigma: That level, ().

    Returns:
        (N, C, h, w). Where the host would multiply them by 0 they are as they are; `start_noise`
        brings them in.
    """
    kept, _ = scales(model, sigma)
    latents: Tensor = model.get_model_object("latent_format").process_out(noisy / (kept or 1.0))
    return latents


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
