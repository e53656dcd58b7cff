"""Stage 1 written down a second time: inversion, what the source shows, and matches.

See `unet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .unet import PNP_BLOCKS, Prompt, epsilon, own_attention, replaced

# Cosines this close are the same number: features come out of some hundred float32 layers.
TIE = 1e-5


@torch.no_grad()
def invert(
    patcher: Any, x0: Tensor, sigmas: Tensor, prompt: Tensor | Prompt, iterations: int = 0
) -> Tensor:
    """Stage 1.1: the latents of every frame at every sigma, (S+1, N, C, h, w);
    sigmas (S+1,) fall to 0.
    """
    path = [x0]
    for j in range(len(sigmas) - 2, -1, -1):
        known, delta = path[0], sigmas[j] - sigmas[j + 1]
        frames = []
        for i, frame in enumerate(known):
            x = frame[None]
            for _ in range(1 + iterations):
                x = frame[None] + delta * epsilon(patcher, x, sigmas[j], prompt, [i])
            frames.append(x[0])
        path.insert(0, torch.stack(frames))
    return torch.stack(path)


@dataclass
class Source:
    """Stage 1.2 at one step: phi[layer] (N, P, C), what each self-attention is given; hidden (N,
    ...), the ResBlock's branch.
    """

    phi: dict[str, Tensor]
    hidden: Tensor


def look_at_source(
    patcher: Any,
    latents: Tensor,
    sigma: Tensor,
    prompt: Tensor | Prompt,
    block: int = PNP_BLOCKS[0],
) -> Source:
    """Runs the source frames one by one and keeps what they show. block: the decoder's, whose
    ResBlock is looked at.
    """
    phi: dict[str, list[Tensor]] = {}
    hidden: list[Tensor] = []

    def attention(layer: str, module: Any, tokens: Tensor) -> Tensor:
        phi.setdefault(layer, []).append(tokens[0])
        return own_attention(module, tokens[0], tokens[0])[None]

    def resblock(branch: Tensor) -> Tensor:
        hidden.append(branch[0])
        return branch

    with replaced(patcher.model.diffusion_model, attention, resblock, block):
        for i, frame in enumerate(latents):
            epsilon(patcher, frame[None], sigma, prompt, [i])
    return Source(
        {layer: torch.stack(frames) for layer, frames in phi.items()}, torch.stack(hidden)
    )


def match(phi: Tensor, frame: int, keyframe: int, proposal: Tensor | None = None) -> Tensor:
    """Stage 1.3: gamma[p], the keyframe's token closest to token p of the frame by
    cosine distance. phi: (N, P, C).

    proposal: (P,) matches that win where float32 cannot tell them from the closest ones (TIE):
    rounding must not decide what is right.
    """
    if frame == keyframe:
        return torch.arange(phi.shape[1])
    unit = phi / phi.norm(dim=-1, keepdim=True)
    similarity = unit[frame] @ unit[keyframe].T
    best = similarity.argmax(-1)
    if proposal is None:
        return best
    proposal = proposal.long()
    tied = similarity.gather(1, proposal[:, None]) >= similarity.gather(1, best[:, None]) - TIE
    return torch.where(tied[:, 0], proposal, best)


def closest(frame: int, keyframes: list[int]) -> tuple[int, int, float]:
    """The nearest past and future keyframe and the future one's weight,
    d_past / (d_past + d_future).
    """
    past = max([k for k in keyframes if k <= frame] or keyframes[:1])
    future = min([k for k in keyframes if k >= frame] or keyframes[-1:])
    if past == future:
        return past, future, 1.0
    return past, future, (frame - past) / (future - past)
