"""Tune-A-Video's training, written down a second time as plain formulas.

See `oracle.py` for the notation.

Shares no code with the pack or with the host's training: frames are noised, the host's UNet is run
on all of them with attention replaced, and torch takes the gradient of the query weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import unet as unet_oracle
from .modes import SparseCausal


def query_weights(patcher: Any) -> dict[str, Tensor]:
    """Copies of the weights that train, by the names of their modules in the UNet."""
    modules = dict(patcher.model.diffusion_model.named_modules())
    return {
        name: module.weight.detach().clone()
        for name, module in modules.items()
        if name.endswith(("attn1.to_q", "attn2.to_q"))
    }


@contextmanager
def queries(patcher: Any, weights: dict[str, Tensor]) -> Iterator[None]:
    """The UNet with these query weights (no module has a bias there)."""
    modules = {name: patcher.model.diffusion_model.get_submodule(name) for name in weights}
    try:
        for name, module in modules.items():
            module.forward = lambda tokens, name=name: tokens @ weights[name].T
        yield
    finally:
        for module in modules.values():
            del module.forward


def loss(
    patcher: Any,
    weights: dict[str, Tensor],
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    prompt: Tensor,
) -> Tensor:
    """The mean squared error of the noise that the model finds in all frames at one noise level; of
    v, if that is what it predicts.

    clean, noise: (N, C, h, w). sigma: (). prompt: (1, tokens, width).
    """
    # Which frames a layer sees is all that the edit's formula is asked for.
    video = SparseCausal(patcher, clean[None], sigma[None], prompt, prompt, prompt, [[]])
    noisy = clean + sigma * noise
    with (
        queries(patcher, weights),
        unet_oracle.replaced(patcher.model.diffusion_model, video.together({})),
    ):
        found = unet_oracle.epsilon(patcher, noisy, sigma, prompt, range(len(clean)))
    if patcher.model.model_type.name == "V_PREDICTION":
        # v = (noise - sigma clean) / sqrt(1 + sigma^2), and clean is what is left of the noisy
        # frames without the noise.
        found, noise = (
            ((1 + sigma**2) * eps - sigma * noisy) / (1 + sigma**2) ** 0.5 for eps in (found, noise)
        )
    return (found - noise).square().mean()


def gradient(
    patcher: Any,
    weights: dict[str, Tensor],
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    prompt: Tensor,
) -> dict[str, Tensor]:
    """Of the loss by the query weights, scaled down to length 1 where it is longer."""
    asked = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    found = torch.autograd.grad(
        loss(patcher, asked, clean, noise, sigma, prompt), list(asked.values())
    )
    length = float(torch.cat([part.flatten() for part in found]).norm())
    return {name: part / max(1.0, length) for name, part in zip(asked, found, strict=True)}
