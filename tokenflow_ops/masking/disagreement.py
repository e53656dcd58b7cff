"""Where two prompts see different things in a clip.

A model that is asked for gold where the source has wood disagrees with itself there and nowhere
else (DiffEdit, Couairon et al., ICLR 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inversion import Inversion
from ..parameterization import Parameterization

# Noise over signal at which prompts are compared: about 0.1 to 0.45 of SD's schedule. More of it
# tells large things apart, less of it their outlines.
LEVELS = 8.0, 6.0, 4.6, 3.5, 2.6, 2.0


def noised(inversion: Inversion, parameterization: Parameterization) -> Inversion:
    """Noises the source's latents anew, by another draw at each level.

    The inversion's own noise holds the source so firmly that no prompt moves it.

    Args:
        inversion: The source's path, of which the clean latents count.
        parameterization: What its noise levels mean.

    Returns:
        The source at LEVELS and clean, in the form of a path; the same one each time.
    """
    clean, generator = inversion.latents[-1], torch.Generator().manual_seed(0)
    sigmas = torch.tensor([*(parameterization.sigma(level) for level in LEVELS), 0.0])
    latents = [
        parameterization.noised(
            clean, torch.randn(clean.shape, generator=generator).to(clean), float(sigma)
        )
        for sigma in sigmas[:-1]
    ]
    return Inversion(
        sigmas,
        torch.stack([*latents, clean]),
        inversion.conditioning,
        inversion.fingerprint,
        len(LEVELS),
        inversion.scheduler,
    )


def disagreement(apart: Tensor) -> Tensor:
    """Measures how far apart predictions of the clean frames are, place by place.

    What noise does to them has another sign at every level and cancels out in their mean; what the
    prompts do has not.

    Args:
        apart: Those under the edit prompt less those under the source prompt, (levels, N, C, h, w).

    Returns:
        (N, h, w) float32, smoothed over 3 x 3 places.
    """
    lengths = apart.float().mean(0).norm(dim=1)
    return F.avg_pool2d(lengths, 3, 1, 1, count_include_pad=False).cpu()
