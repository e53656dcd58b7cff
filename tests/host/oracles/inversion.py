"""Extrapolated inversion written down a second time, frame by frame, and the way back: what the
pack's results are compared with.

Shares no code with the pack; the model's noise is the oracle's, see oracle.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .unet import epsilon

FIRST_STEP_CALLS, FIRST_OF_PAIRS_CALLS = 3, 1


@torch.no_grad()
def invert_extrapolated(
    patcher: Any,
    x0: Tensor,
    sigmas: Tensor,
    prompt: Tensor,
    iterations: int,
    every: int = 1,
    pairs: bool = False,
) -> Tensor:
    """The latents of every frame at every sigma, (S+1, N, C, h, w); x0 (N, C, h, w),
    sigmas (S+1,) fall to 0.

    Step j solves x_j = x_{j+1} + (s_j - s_{j+1}) eps(x_j, s_j). Its iterations start from the
    straight line between x_{j+1} and the picture D_j = D_a + (D_a - D_b) (log s_j - log s_a) / (log
    s_a - log s_b), led on from s_{j+1} to s_j; a and b are the last two steps whose noise was asked
    for: the first two, then those that `every` divides.

    In pairs, steps j and j - 1 are made together while j - 1 >= 0.4 S:
    the line through D_a and D_b, a quarter as steep from D_a on, is led on to x_{j-1}, where the
    noise is asked for, and D_j lies between D_a and the D_{j-1} that is seen there.
    """
    frames = []
    for number, frame in enumerate(x0):
        path, pictures, known = [frame[None]], [], []
        steps = len(sigmas) - 1
        for j in range(steps - 1, -1, -1):
            here, last = path[0], path[0]
            if len(path) > steps - j:  # made with the step before
                continue
            if pairs and len(pictures) > 1 and j - 1 >= 0.4 * steps:
                noise, picture = _seen_two_steps_on(
                    lambda x, sigma, number=number: epsilon(patcher, x, sigma, prompt, [number]),
                    last,
                    sigmas[j - 1 : j + 2],
                    _line(pictures[0], known[0], 0.75 * pictures[0] + 0.25 * pictures[1], known[1]),
                )
                between = _line(pictures[0], known[0], picture, sigmas[j - 1])(sigmas[j])
                path.insert(0, between + sigmas[j] / sigmas[j + 1] * (last - between))
                path.insert(0, path[0] + (sigmas[j - 1] - sigmas[j]) * noise)
                pictures.insert(0, picture)
                known.insert(0, sigmas[j - 1])
                continue
            if len(pictures) == 1:
                here = pictures[0] + sigmas[j] / sigmas[j + 1] * (last - pictures[0])
            if len(pictures) > 1:
                slope = (pictures[0] - pictures[1]) / (known[0].log() - known[1].log())
                picture = pictures[0] + slope * (sigmas[j].log() - known[0].log())
                here = picture + sigmas[j] / sigmas[j + 1] * (last - picture)
            if len(pictures) < 2 or j % every == 0:
                more = FIRST_OF_PAIRS_CALLS if pairs else FIRST_STEP_CALLS
                for _ in range(1 + iterations + (0 if pictures else more)):
                    noise = epsilon(patcher, here, sigmas[j], prompt, [number])
                    picture, here = (
                        here - sigmas[j] * noise,
                        last + (sigmas[j] - sigmas[j + 1]) * noise,
                    )
                pictures.insert(0, picture)
                known.insert(0, sigmas[j])
            path.insert(0, here)
        frames.append(torch.cat(path))
    return torch.stack(frames, 1)


def _line(one: Tensor, at: Tensor, other: Tensor, there: Tensor) -> Callable[[Tensor], Tensor]:
    """The line through two pictures over log sigma."""
    return lambda sigma: one + (other - one) * (sigma.log() - at.log()) / (there.log() - at.log())


def _seen_two_steps_on(
    noise_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    levels: Tensor,
    pictures: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Noise and picture at the first of three levels, where x at the last of them comes to along
    the given pictures.
    """
    for low, high in ((levels[2], levels[1]), (levels[1], levels[0])):
        x = pictures(high) + high / low * (x - pictures(high))
    noise = noise_of(x, levels[0])
    return noise, x - levels[0] * noise


@torch.no_grad()
def sample_back(patcher: Any, noisy: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
    """Euler steps from noisy latents (n, C, h, w) down to sigma 0, frame by frame."""
    frames = []
    for number, x in enumerate(noisy[:, None]):
        for high, low in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + (low - high) * epsilon(patcher, x, high, prompt, [number])
        frames.append(x)
    return torch.cat(frames)
