"""The host's UNet as the oracles call it: what it is told, what its layers answer, its noise.

Shares no code with the pack. Works on the host's UNet (`patcher.model.diffusion_model`) and its
sigmas; plain softmax attention, float32. Latents are the model's own (after `process_latent_in`)
in noise-over-signal coordinates: (N, C, h, w).

Names: N frames, k keyframes, S steps, P tokens of width C in a layer; "layer" is the name of an
attn1 module in the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# SD 1.x and 2.x: the decoder blocks whose queries and keys Plug-and-Play takes from the source, the
# first of them with its ResBlock.
PNP_BLOCKS = range(4, 12)


def passed(sigma: Tensor) -> float:
    """How many of SD's 999 steps between its training levels lie above a noise level."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    times = np.interp(np.log(float(sigma)), np.log(np.sqrt((1 - kept) / kept)), np.arange(1000))
    return float(999 - times)


def within(share: float, sigma: Tensor) -> bool:
    """Whether a noise level lies within the first share of SD's schedule, by the time of its
    training steps: half of it has passed at step 500.
    """
    return bool(share == 1 or passed(sigma) < share * 999 - 0.01)


@dataclass(frozen=True)
class Prompt:
    """What the model is told beside the latents.

    tokens: (1, tokens, width). vector: (1, width), `y` of the models that take it. concat: (N, c,
    h, w), what models for inpainting or instructions see behind every frame's latents.
    """

    tokens: Tensor
    vector: Tensor | None = None
    concat: Tensor | None = None


def sdxl_vector(pooled: Tensor, height: int, width: int) -> Tensor:
    """SDXL's `y` (1, ...): the pooled prompt, then height and width in pixels, the crop's corner 0,
    0, and height and width once more.
    """
    return _vector(pooled, (height, width, 0, 0, height, width))


def refiner_vector(pooled: Tensor, height: int, width: int, score: float) -> Tensor:
    """The refiner's `y` (1, ...): the pooled prompt, then height and width in pixels, the crop's
    corner, and how beautiful it shall be.
    """
    return _vector(pooled, (height, width, 0, 0, score))


def _vector(pooled: Tensor, numbers: Sequence[float]) -> Tensor:
    frequencies = 10000 ** (-torch.arange(128) / 128)
    waves = [
        torch.cat([(number * frequencies).cos(), (number * frequencies).sin()])
        for number in numbers
    ]
    return torch.cat([pooled, torch.cat(waves)[None]], 1)


@contextmanager
def replaced(
    unet: Any,
    attention: Callable | None = None,
    resblock: Callable | None = None,
    block: int = PNP_BLOCKS[0],
    upsample: Callable | None = None,
) -> Iterator[None]:
    """Self-attention layers answer attention(layer, module, tokens), the branch of an output
    block's ResBlock resblock(hidden).

    The last Upsample, behind which the UNet is back at full resolution, answers upsample(hidden).
    """
    changed = []

    def replace(module: Any, forward: Callable) -> None:
        module.forward = forward
        changed.append(module)

    try:
        for name, module in unet.named_modules():
            if attention is not None and name.endswith("attn1"):
                replace(
                    module,
                    lambda tokens, name=name, module=module, **_: attention(name, module, tokens),
                )
        if resblock is not None:
            branch = unet.output_blocks[block][0].out_layers
            plain = branch.forward
            replace(branch, lambda hidden: resblock(plain(hidden)))
        if upsample is not None:
            last = [
                module
                for module in unet.output_blocks.modules()
                if type(module).__name__ == "Upsample"
            ][-1]
            before = last.forward
            replace(last, lambda hidden, **shape: upsample(before(hidden, **shape)))
        yield
    finally:
        for module in changed:
            del module.forward


def epsilon(
    patcher: Any, x: Tensor, sigma: Tensor, prompt: Tensor | Prompt, frames: Sequence[int]
) -> Tensor:
    """The model's noise for the latents x (n, C, h, w) of some frames at one sigma and one prompt
    (its tokens, if it has no more).
    """
    told = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    kind = patcher.model.model_type.name
    spread = 0.5 if kind == "EDM" else 1.0  # deviation of the clean latents
    if kind.endswith("EDM"):
        timestep = (sigma.log() / 4).reshape(1).expand(len(x))
    else:
        timestep = patcher.model.model_sampling.timestep(sigma.reshape(1)).float().expand(len(x))
    scaled = x / (sigma**2 + spread**2) ** 0.5
    seen = scaled if told.concat is None else torch.cat([scaled, told.concat[list(frames)]], 1)
    vector = {} if told.vector is None else {"y": told.vector.expand(len(x), -1)}
    out = patcher.model.diffusion_model(
        seen, timestep, context=told.tokens.expand(len(x), -1, -1), transformer_options={}, **vector
    )
    if kind == "EDM":
        # Karras et al. 2022, table 1: clean = c_skip x + c_out F.
        clean = (spread**2 * x + sigma * spread * (sigma**2 + spread**2) ** 0.5 * out) / (
            sigma**2 + spread**2
        )
        return (x - clean) / sigma
    if kind.startswith("V_PREDICTION"):
        # With alpha = 1 / sqrt(sigma^2 + 1) and beta = sigma alpha: scaled = alpha clean + beta
        # noise, v = alpha noise - beta clean.
        return (out + sigma * scaled) / (sigma**2 + 1) ** 0.5
    return out


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head: (P, C), (P', C), (P', C) -> (P, C)."""
    outputs = []
    for q_h, k_h, v_h in zip(
        q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True
    ):
        outputs.append(torch.softmax(q_h @ k_h.T / q_h.shape[-1] ** 0.5, -1) @ v_h)
    return torch.cat(outputs, -1)


def own_attention(module: Any, tokens: Tensor, asking: Tensor) -> Tensor:
    """One frame's self-attention (P, C), with queries and keys computed from `asking`."""
    out = softmax_attention(
        module.to_q(asking), module.to_k(asking), module.to_v(tokens), module.heads
    )
    return module.to_out(out)


def injected(layer: str, blocks: Sequence[int] = PNP_BLOCKS) -> bool:
    """Whether Plug-and-Play takes this layer's queries and keys from the source."""
    return layer.startswith("output_blocks.") and int(layer.split(".")[1]) in blocks
