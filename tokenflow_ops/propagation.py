"""Edited keyframe tokens carried to every frame along the source's correspondences (paper, equation
6).
"""

from __future__ import annotations

import torch
from torch import Tensor

# What frames between keyframes take from them: features that come up to the UNet's full resolution,
# or attention's output as in the paper.
DEEP_FEATURES, ATTENTION = PROPAGATIONS = "deep features", "attention"
# Until which share of the schedule the denoised latents are made of the keyframes' as well.
CARRY_UNTIL = 0.2


def propagate(
    base: Tensor,
    past: Tensor,
    future: Tensor,
    weight: Tensor,
    past_tokens: Tensor,
    future_tokens: Tensor,
) -> Tensor:
    """F(T_base, i, p) = w_i T_base[i+][gamma+[p]] + (1 - w_i) T_base[i-][gamma-[p]].

    base: (k, P, C) the keyframes' attention output, any float dtype.
    past, future: (n,) positions in `base`. weight: (n,) share of the future keyframe.
    past_tokens, future_tokens: (n, P) token indices of any integer type.
    Returns: (n, P, C) in the dtype of `base`.
    """
    tokens, width = base.shape[1:]
    flat = base.reshape(-1, width)

    def gather(frame: Tensor, token: Tensor) -> Tensor:
        index = frame[:, None] * tokens + token.long()
        return flat.index_select(0, index.reshape(-1)).reshape(*index.shape, width)

    # One gather where both neighbours are the same keyframe: frames before the first, after the
    # last, and keyframes themselves.
    if torch.equal(past, future):
        return gather(past, past_tokens)
    return torch.lerp(
        gather(past, past_tokens),
        gather(future, future_tokens),
        weight.to(base.dtype)[:, None, None],
    )
