"""Extrapolated inversion written down a second time, frame by frame, and the way back: what the
pack's results are compared with.

Shares no code with the pack; the model's noise is the oracle's, see oracle.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .unet import epsilon

FIRST_STEP_CALLS = 3


@torch.no_grad()
def invert_extrapolated(
    patcher: Any, x0: Tensor, sigmas: Tensor, prompt: Tensor, iterations: int, every: int = 1
) -> Tensor:
    """The latents of every frame at every sigma, (S+1, N, C, h, w); x0 (N, C, h, w),
    sigmas (S+1,) fall to 0.

    Step j solves x_j = x_{j+1} + (s_j - s_{j+1}) eps(x_j, s_j). Its iterations start from the
    straight line between x_{j+1} and the picture D_j = D_a + (D_a - D_b) (log s_j - log s_a) / (log
    s_a - log s_b), led on from s_{j+1} to s_j; a and b are the last two steps whose noise was asked
    for: the first two, then those that `every` divides.
    """
    frames = []
    for number, frame in enumerate(x0):
        path, pictures, known = [frame[None]], [], []
        for j in range(len(sigmas) - 2, -1, -1):
            here, last = path[0], path[0]
            if len(pictures) == 1:
                here = pictures[0] + sigmas[j] / sigmas[j + 1] * (last - pictures[0])
            if len(pictures) > 1:
                slope = (pictures[0] - pictures[1]) / (known[0].log() - known[1].log())
                picture = pictures[0] + slope * (sigmas[j].log() - known[0].log())
                here = picture + sigmas[j] / sigmas[j + 1] * (last - picture)
            if len(pictures) < 2 or j % every == 0:
                for _ in range(1 + iterations if pictures else 1 + iterations + FIRST_STEP_CALLS):
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


@torch.no_grad()
def sample_back(patcher: Any, noisy: Tensor, sigmas: Tensor, prompt: Tensor) -> Tensor:
    """Euler steps from noisy latents (n, C, h, w) down to sigma 0, frame by frame."""
    frames = []
    for number, x in enumerate(noisy[:, None]):
        for high, low in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + (low - high) * epsilon(patcher, x, high, prompt, [number])
        frames.append(x)
    return torch.cat(frames)
