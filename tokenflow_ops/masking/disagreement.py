"""Where two prompts see different things in a clip.

A model that is asked for gold where the source has wood disagrees with itself there and nowhere
else (DiffEdit, Couairon et al., ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inversion import Inversion
from ..parameterization import Parameterization

# Noise over signal at which the prompts are compared: about 0.1, 0.3 and 0.45 of SD's schedule.
# More noise tells large things apart, less noise their outlines.
LEVELS = 8.0, 4.0, 2.0
# Drawn anew: the inversion's own noise holds the source so firmly that no prompt moves it.
DRAWS = 4


def noised(inversion: Inversion, parameterization: Parameterization) -> Iterator[Inversion]:
    """Noises the source's latents anew, DRAWS times.

    Args:
        inversion: The source's path, of which the clean latents count.
        parameterization: What its noise levels mean.

    Yields:
        The source at LEVELS and clean, in the form of a path; the same ones each time.
    """
    clean, generator = inversion.latents[-1], torch.Generator().manual_seed(0)
    sigmas = torch.tensor([*(parameterization.sigma(level) for level in LEVELS), 0.0])
    for _ in range(DRAWS):
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        latents = [parameterization.noised(clean, noise, float(sigma)) for sigma in sigmas]
        yield Inversion(
            sigmas,
            torch.stack(latents),
            inversion.conditioning,
            inversion.fingerprint,
            len(LEVELS),
            inversion.scheduler,
        )


def disagreement(apart: Tensor) -> Tensor:
    """Measures how far apart predictions of the clean frames are, place by place.

    Args:
        apart: Those under the edit prompt less those under the source prompt, mean over the draws,
            so that what noise does to both cancels out: (levels, N, C, h, w).

    Returns:
        (N, h, w) float32, smoothed over 3 x 3 places, mean over the levels.
    """
    lengths = apart.float().norm(dim=2)
    return F.avg_pool2d(lengths, 3, 1, 1, count_include_pad=False).mean(0).cpu()
