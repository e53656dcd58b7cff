"""Edited keyframe tokens carried to every frame along the source's matches (paper, equation 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .parameterization import before, passed

# What frames between keyframes take from them: features that come up to the UNet's full resolution,
# or attention's output as in the paper.
DEEP_FEATURES, ATTENTION = PROPAGATIONS = "deep features", "attention"
# Until which share of SD's schedule, by its noise, the denoised latents are made of the keyframes'
# as well.
CARRY_UNTIL = 0.2
# What a step may take from the one before: what keyframes have left there, or all frames as they
# were denoised there, to which it adds by how much its keyframes have changed.
FEATURES, CHANGES = "features", "changes"


def carries_pictures(share: float, begins: float, ends: float) -> bool:
    """Tells whether the denoised latents are made of the keyframes' as well in a step.

    They are in the first part of SD's schedule, but not in the last step, where the frames'
    own detail would never be drawn.

    Args:
        share: How large a part, 0 to 1; with 1 every step is within it.
        begins: Noise over signal where the step begins.
        ends: The same where it ends.

    Returns:
        Whether they are.

    Examples:
        >>> [carries_pictures(0.2, begins, ends) for begins, ends in ((14.6, 6.0), (1.6, 0.6))]
        [True, False]
        >>> carries_pictures(0.2, 14.6, 0.0), carries_pictures(1.0, 14.6, 0.0)
        (False, True)
    """
    return share == 1 or (before(share, begins) and ends > 0)


@dataclass(frozen=True)
class Repeats:
    """Which steps take what is left of the step before (see `edit.edit_again`, `carry_changes`).

    Every second one of those between two shares of SD's schedule, by its noise.

    Attributes:
        first: The share from which on steps leave something, 0 to 1.
        until: The share up to which they do.
        apart: How much of the schedule lies between two such steps at most: what is further away
            has changed.
        takes: FEATURES or CHANGES.

    Examples:
        >>> repeats = Repeats(0.2, 0.6, apart=0.1)
        >>> [repeats.follow(*step) for step in ((9.0, 8.0), (1.8, 1.6), (1.8, 0.6), (0.5, 0.4))]
        [False, True, False, False]
    """

    first: float
    until: float
    apart: float
    takes: str = FEATURES

    def follow(self, begins: float, ends: float) -> bool:
        """Tells whether the step after this one may take what it leaves.

        Args:
            begins: Noise over signal where the step begins.
            ends: The same where it ends, and the next one begins; 0 after the last.

        Returns:
            Whether it may.
        """
        within = not before(self.first, begins) and before(self.until, begins)
        return within and ends > 0 and passed(ends) - passed(begins) <= self.apart


# From where pictures are carried no more until the last details are drawn, and only where steps lie
# as close as forty or more do.
REPEATS = Repeats(CARRY_UNTIL, 0.6, apart=0.026)


def propagate(
    base: Tensor,
    past: Tensor,
    future: Tensor,
    weight: Tensor,
    past_tokens: Tensor,
    future_tokens: Tensor,
) -> Tensor:
    """Computes F(T_base, i, p) = w_i T_base[i+][gamma+[p]] + (1 - w_i) T_base[i-][gamma-[p]].

    Each token of a frame is blended from the two tokens that it matches, of its future and its
    past keyframe.

    Args:
        base: The keyframes' attention output, (k, P, C), any float dtype.
        past: Positions of the past keyframes in `base`, (n,).
        future: Positions of the future keyframes in `base`, (n,).
        weight: Share of the future keyframe, (n,) or of each token (n, P), 0 to 1.
        past_tokens: Token indices in the past keyframes, (n, P), any integer type.
        future_tokens: Token indices in the future keyframes, (n, P), any integer type.

    Returns:
        (n, P, C) in the dtype of `base`.

    Examples:
        Two keyframes of two tokens each; a frame halfway between them:

        >>> base = torch.tensor([[[0.0], [1.0]], [[10.0], [20.0]]])
        >>> past, future, weight = torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5])
        >>> tokens = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
        >>> propagate(base, past, future, weight, *tokens).tolist()
        [[[10.0], [5.5]]]
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
        (weight if weight.ndim == 2 else weight[:, None]).to(base.dtype)[..., None],
    )
