"""The method's loop: windows of keyframes, each followed by its frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..carrying.denoised import carry_changes, carry_denoised
from ..keyframes import Windows
from ..passes import Bank, KeyframePass
from ..propagation import CHANGES, FEATURES
from ..shards import ALONE, Shards
from .frames import run_frames
from .joint import Joint, joined, rows_of
from .plan import NOTHING, Denoiser, StepPlan
from .result import Edited, Left, Result

# Where attention among keyframes is dear, and four tokens side by side are much alike.
MERGED_FROM = 1024


def edit_step(denoiser: Denoiser, plan: StepPlan, shards: Shards = ALONE) -> Edited:
    """Denoises all frames of a clip consistently.

    Windows of keyframes follow each other, each followed by the frames up to its last keyframe. Of
    a window's tokens only the last keyframe's stay for the next one, so that device memory does not
    grow with the clip. Keyframes are not run again among the frames: there they would only be given
    their own tokens. And where the denoised frames are carried, or their change, frames between
    keyframes are not run at all: nothing of them would be left.

    Args:
        denoiser: Evaluates the model on the clip's N noisy frames.
        plan: What to do.
        shards: The machines that share the clip.

    Returns:
        The denoised frames.
    """
    result = Result(denoiser, ALONE if plan.at_once else shards)
    for first, windows in plan.windows:
        _edit_shot(result, plan, first, windows)
    result.exchange()
    if plan.carries:
        return Edited([carry_denoised(plan, part) for part in result.denoised])
    if plan.before is not None:
        changed = zip(plan.before, result.denoised, strict=True)
        return Edited([carry_changes(plan, *both) for both in changed])
    if plan.keeps == CHANGES:
        return Edited(result.denoised, [part.clone() for part in result.denoised])
    return Edited(result.denoised, Left(plan, result.windows) if result.windows else None)


def edit_again(denoiser: Denoiser, left: Left, shards: Shards = ALONE) -> Edited:
    """Denoises all frames with what keyframes have left in another step, close to this one.

    Not in the paper. Keyframes take their own tokens and features of that step like all other
    frames: what lies deep changes little from step to step (DeepCache, 2312.00858), and only what
    is left of the model runs.

    Args:
        denoiser: Evaluates the model on the clip's N noisy frames.
        left: What that step's keyframes have left.
        shards: The machines that share the clip, the same as then.

    Returns:
        The denoised frames.
    """
    result = Result(denoiser, shards)
    for own, before, joint in left.windows:
        run_frames(result, left.plan, own, before, joint, again=True)
    result.exchange()
    return Edited(result.denoised)


def _edit_shot(result: Result, plan: StepPlan, first: int, windows: Windows) -> None:
    """Denoises a shot, whose keyframes are those from the `first` on."""
    anchors = Joint()
    last: Joint | None = None
    if len(windows.anchors):
        few = windows.anchors
        anchors = _edit_keyframes(result, plan, first + few, {}, NOTHING, len(few))
    for own in windows.own:
        context = joined(rows_of(anchors.seen, windows.elsewhere(own)), last.seen if last else {})
        before, positions = last, torch.arange(first + own.start, first + own.stop)
        last = _edit_keyframes(result, plan, positions, context, plan.banked, windows.tail)
        if not plan.keyframes_alone:
            whole = range(first + own.start, first + own.stop)
            run_frames(result, plan, whole, before, last)
            if plan.keeps == FEATURES:
                away = len(windows.own) > 1 or len(plan.windows) > 1
                result.leave(plan, whole, before, last, away)


def _edit_keyframes(
    result: Result,
    plan: StepPlan,
    positions: Tensor,
    context: Bank,
    banked: frozenset[str] | None,
    remembered: int,
) -> Joint:
    """The joint pass of some keyframes, on one machine for all."""
    frames, denoiser, seen = plan.matches.keyframes[positions], result.denoiser, dict[Any, Any]()

    def edit() -> tuple[Bank, dict[str, Tensor], list[Tensor]]:
        source = denoiser.source(frames, plan.injected)
        joint = KeyframePass(
            frames,
            source=source,
            banked=banked,
            lists=1 if plan.guides_along else None,
            context=context,
            remembered=remembered,
            merged_from=MERGED_FROM if plan.merges else None,
        )
        denoised = denoiser.run(joint)
        seen.update(joint.seen)
        carried = plan.hidden if plan.shallow is None and plan.hidden_along else ()
        return joint.bank, {name: source[name] for name in carried}, denoised

    bank, hidden, denoised = result.shards.once(edit)
    result.keep(frames, denoised)
    guidance = [part - denoised[0] for part in denoised[1:]] if plan.guides_along else []
    return Joint(bank, hidden, seen, guidance)
