"""Denoised frames made of the keyframes', as a whole or by their change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..guidance import carry_guidance
from ..matching.correspondence import carry

if TYPE_CHECKING:
    from ..editing import StepPlan

AT_ONCE = 64  # frames: the indices are larger than the latents


def carry_denoised(plan: StepPlan, denoised: Tensor) -> Tensor:
    """Makes denoised frames from the keyframes' along the finest matches, as tokens are made.

    Not in the paper, and for early steps only. Convolutions see every frame's own noise and decide
    on their own what stands where; later steps only draw it out. Late in the schedule copies of
    whole patches would be seen, so what is left of the frames' own detail stays.

    Args:
        plan: The step's.
        denoised: All denoised frames, (N, C, h, w), written over.

    Returns:
        The same tensor.
    """
    if not plan.carries:
        return denoised
    matches, finest = plan.matches, plan.features.finest
    keyframes, grid = denoised[matches.keyframes.to(denoised.device)], plan.features.grid(finest)
    for frames in torch.arange(len(denoised)).split(AT_ONCE):
        denoised[frames.to(denoised.device)] = carry(
            keyframes,
            matches.near.of(frames),
            matches.tokens(finest, frames),
            grid,
            matches.weight(finest, frames),
        )
    return denoised


def carry_changes(plan: StepPlan, before: Tensor, denoised: Tensor) -> Tensor:
    """Makes denoised frames of those of the step before, changed as keyframes have changed.

    Not in the paper. Late in the schedule the denoised frames change little from step to step, and
    along the matches alike. Every frame's own detail stays as the step before has drawn it; the
    change is carried by vote, as guidance is.

    Args:
        plan: The step's.
        before: All frames as denoised in the step before, (N, C, h, w).
        denoised: The same shape, of which the keyframes are denoised.

    Returns:
        A new tensor in the same shape; keyframes are as denoised.
    """
    matches, finest = plan.matches, plan.features.finest
    rows, grid = matches.keyframes.to(denoised.device), plan.features.grid(finest)
    change, changed = denoised[rows] - before[rows], before.clone()
    for frames in torch.arange(len(denoised)).split(AT_ONCE):
        changed[frames.to(changed.device)] += carry_guidance(
            change,
            matches.near.of(frames),
            matches.tokens(finest, frames),
            grid,
            matches.weight(finest, frames),
        )
    changed[rows] = denoised[rows]
    return changed
