"""How a model's noise levels relate to the picture in them, and where they lie on SD's schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# Stable Diffusion's own schedule, on which the authors give their shares of the steps.
TRAINING_STEPS, FIRST_BETA, LAST_BETA = 1000, 0.00085, 0.012
# Levels in float32 that lie on a share's end are beyond it.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Parameterization:
    """What a model family's noise levels (sigmas) mean.

    Attributes:
        flow: Whether noisy latents are (1 - sigma) clean + sigma noise, as flow models have them;
            otherwise they are clean + sigma noise.

    Examples:
        >>> Parameterization().noise_over_signal(1.5)
        1.5
        >>> Parameterization(flow=True).noise_over_signal(0.75)
        3.0
        >>> Parameterization(flow=True).sigma(3.0)
        0.75
    """

    flow: bool = False

    def signal(self, sigma: float) -> float:
        """Returns what the picture is multiplied by at a noise level."""
        return 1 - sigma if self.flow else 1.0

    def noise_over_signal(self, sigma: float) -> float:
        """Returns the noise's scale over the picture's at a noise level."""
        if not self.flow:
            return sigma
        return sigma / (1 - sigma) if sigma < 1 else float("inf")

    def sigma(self, noise_over_signal: float) -> float:
        """Returns the noise level where the noise's scale over the picture's is this."""
        return noise_over_signal / (1 + noise_over_signal) if self.flow else noise_over_signal

    def noised(self, clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Adds noise to clean latents, as the model family does.

        Args:
            clean: Latents of any shape.
            noise: Of deviation 1, in the same shape.
            sigma: The noise level.

        Returns:
            Noisy latents in the same shape.
        """
        return (1 - sigma if self.flow else 1.0) * clean + sigma * noise


def passed(noise_over_signal: float) -> float:
    """Tells how much of Stable Diffusion's own schedule lies above a noise level.

    This is what makes a share of the authors' fifty steps mean the same noise with another
    schedule, scheduler, number of steps or cut.

    Args:
        noise_over_signal: The noise's scale over the picture's, 0 or more.

    Returns:
        A share of the schedule's time, 0 at its noisiest level and above, 1 at its cleanest and
        below.

    Examples:
        >>> round(passed(1.6183), 2), round(passed(0.5717), 2), passed(66.0), passed(0.0)
        (0.5, 0.8, 0.0, 1.0)
    """
    levels = _levels()
    at = torch.tensor(noise_over_signal, dtype=torch.float64).clamp(levels[0], levels[-1])
    above = int(torch.searchsorted(levels, at).clamp(min=1))
    low, high = levels[above - 1], levels[above]
    time = above - 1 + float((at.log() - low.log()) / (high.log() - low.log()))
    return 1 - time / (TRAINING_STEPS - 1)


def before(share: float, noise_over_signal: float) -> bool:
    """Tells whether a step that begins at a noise level is within the first part of SD's schedule.

    Args:
        share: How large a part, 0 to 1; with 1 every level is within it.
        noise_over_signal: The level.

    Returns:
        Whether it is.
    """
    return share == 1 or passed(noise_over_signal) < share - ROUNDING


@cache
def _levels() -> Tensor:
    """Noise over signal of every training step, rising, (TRAINING_STEPS,) float64."""
    first, last = FIRST_BETA**0.5, LAST_BETA**0.5
    betas = torch.linspace(first, last, TRAINING_STEPS, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    return ((1 - kept) / kept).sqrt()
