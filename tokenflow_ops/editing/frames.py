"""Frames of an edit, from what their keyframes have left."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..guidance import carry_guidance
from ..keyframes import Neighbours
from ..matching.correspondence import StepMatches, carry
from ..passes import PropagationPass
from .joint import Joint, joined, rows_of
from .plan import Denoiser, StepPlan
from .result import Result


def run_frames(
    result: Result,
    plan: StepPlan,
    own: range,
    before: Joint | None,
    joint: Joint,
    again: bool = False,
) -> None:
    """Runs the frames whose future keyframe is one of a window's.

    Args:
        result: What the step makes, to which the frames are added.
        plan: What to do.
        own: The window's keyframes.
        before: What the window before has left, whose last keyframe's tokens frames take as well.
        joint: What the window's keyframes have left.
        again: Whether keyframes run, too, and take their own tokens.
    """
    near, denoiser = plan.matches.near, result.denoiser
    first = own.start - (before is not None)
    left = _behind_last(before, joint) if before else joint
    following = (near.future >= own.start) & (near.future < own.stop)
    if not plan.at_once and not again:
        following &= ~_with_own_tokens(plan.matches)
    finest = (
        None
        if plan.shallow is None
        else (plan.features.finest[-1], plan.features.grid(plan.features.finest))
    )

    def work(part: Tensor) -> None:
        nearby = near.of(part).counted_from(first)
        found = plan.correspondences
        tokens = partial(found.tokens, plan.step, frames=part)
        weight = partial(found.weight, plan.step, frames=part)
        source = {} if finest else _hidden_of_frames(denoiser, plan, left.hidden, nearby, part)
        propagation = PropagationPass(
            part,
            source=source,
            bank=left.bank,
            near=nearby,
            tokens=tokens,
            weight=weight,
            finest=finest,
        )
        denoised = denoiser.run(propagation, 1 if plan.guides_along else None)
        if left.guidance:
            layers = plan.features.finest
            along = (
                nearby,
                plan.matches.tokens(layers, part),
                plan.features.grid(layers),
                plan.matches.weight(layers, part),
            )
            alone = denoised[0]
            denoised += [
                alone + carry_guidance(other.to(alone.device), *along) for other in left.guidance
            ]
        result.keep(part, denoised)
        result.run_here.append(part)

    denoiser.in_parts(result.shards.here(following.nonzero().flatten()), work)


def _behind_last(before: Joint, joint: Joint) -> Joint:
    """What the last keyframe of the window before and then the window's own leave for frames."""
    return Joint(
        joined(rows_of(before.bank, slice(-1, None)), joint.bank),
        {
            name: torch.cat([before.hidden[name][-1:].to(part.device), part])
            for name, part in joint.hidden.items()
        },
        guidance=[
            torch.cat([earlier[-1:], part])
            for earlier, part in zip(before.guidance, joint.guidance, strict=True)
        ],
    )


def _hidden_of_frames(
    denoiser: Denoiser, plan: StepPlan, hidden: dict[str, Tensor], near: Neighbours, frames: Tensor
) -> dict[str, Tensor]:
    """The source's hidden features of some frames.

    The keyframes' along the matches, unless every frame has its own. The source carried along its
    own matches is nearly the source, and the keyframes' features are computed anyway: it takes
    neither the time nor the memory for all frames at all steps. Edits were the same within a
    thousandth of their warp error.
    """
    if plan.hidden_along is None:
        return denoiser.source(frames, plan.hidden)
    found = {}
    for name, part in hidden.items():
        asked = plan.step, plan.hidden_along[name], frames
        tokens, weight = plan.correspondences.tokens(*asked), plan.correspondences.weight(*asked)
        found[name] = carry(part, near, tokens, (part.shape[2], part.shape[3]), weight)
    return found


def _with_own_tokens(matches: StepMatches) -> Tensor:
    """(N,) bool: the keyframes that keep their own tokens and nothing else."""
    near, own = matches.near, torch.arange(len(matches.keyframes))
    kept = (near.past[matches.keyframes] == own) & (near.future[matches.keyframes] == own)
    whole = torch.zeros(len(near.past), dtype=torch.bool)
    whole[matches.keyframes[kept]] = True
    return whole
