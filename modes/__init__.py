"""The ways to keep frames together: what each runs at one evaluation of the sampler."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..host.conditioning.controls import takes_hints_for_a_film
from ..host.editing.edit import Mode, Moment
from ..host.editing.edit_run import EditRun
from ..host.runs.model_call import ModelCall
from ..host.shards import together
from ..tokenflow_ops.baselines.public_code import chunk_neighbours
from ..tokenflow_ops.carrying.denoised import carry_denoised
from ..tokenflow_ops.passes import (
    JointPass,
    KeyframePass,
    Pass,
    PropagationPass,
    SourceKeyframePass,
    SourceMatchPass,
    SparseCausalPass,
)
from . import fatezero, rerender
from .chain import in_turn


def per_frame(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """Runs Plug-and-Play alone: every frame attends to itself.

    Args:
        run: The sampling run.
        call: The evaluation.
        now: Where the sampler stands.

    Returns:
        The denoised frames (N, C, h, w) for each list of conditionings.
    """
    controls = (entry.get("control") for entries in call.conds for entry in entries or ())
    if not now.injected and not any(takes_hints_for_a_film(control) for control in controls):
        return call.unchanged()
    return run.over_frames(
        call, lambda frames: Pass(frames, source=run.source(call, frames, now.injected)), together()
    )


def joint_attention(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """Lets every frame attend to all keyframes (the paper's ablation).

    Args:
        run: The sampling run.
        call: The evaluation.
        now: Where the sampler stands.

    Returns:
        The denoised frames (N, C, h, w) for each list of conditionings.
    """
    shots = []
    for first, stop in pairwise([*run.edit.correspondences.shots, len(call.x)]):
        drawn = now.matches.keyframes
        own = drawn[(drawn >= first) & (drawn < stop)]
        shots.append(_attend_to(run, call, now, own, torch.arange(first, stop)))
    return [torch.cat(parts) for parts in zip(*shots, strict=True)] if len(shots) > 1 else shots[0]


def _attend_to(
    run: EditRun, call: ModelCall, now: Moment, keyframes: Tensor, frames: Tensor | None = None
) -> list[Tensor]:
    """Lets some frames, or all, attend to some keyframes."""
    limit = run.edit.attended_keyframes
    joint = KeyframePass(
        keyframes, source=run.source(call, keyframes, now.injected), banked=frozenset(), limit=limit
    )
    call.run(run, joint)

    def make(frames: Tensor) -> JointPass:
        source = run.source(call, frames, now.injected)
        return JointPass(frames, source=source, keyframes=keyframes, seen=joint.seen, limit=limit)

    return run.over_frames(call, make, frames=frames)


def first_frame(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """Lets every frame attend to the first one alone (Text2Video-Zero).

    Args:
        run: The sampling run.
        call: The evaluation.
        now: Where the sampler stands.

    Returns:
        The denoised frames (N, C, h, w) for each list of conditionings.
    """
    return _attend_to(run, call, now, torch.tensor([0]))


def sparse_causal(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """Lets every frame attend to the first and the previous one in all layers.

    This is Tune-A-Video, untrained.

    Args:
        run: The sampling run.
        call: The evaluation.
        now: Where the sampler stands.

    Returns:
        The denoised frames (N, C, h, w) for each list of conditionings.
    """
    layers = frozenset(run.edit.backbone.attention)
    return in_turn(
        run,
        call,
        lambda frames, before: SparseCausalPass(
            frames, source=run.source(call, frames, now.injected), layers=layers, before=before
        ),
    )


def public_code(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """Makes the choices of the method's public code: see `tokenflow_ops.baselines.public_code`.

    The public code runs the source as a row beside the edit's two and searches in every layer on
    that row, which is propagated like the others; so do we, one pass after the other. Of the stored
    correspondences only the keyframes are used.

    Args:
        run: The sampling run.
        call: The evaluation.
        now: Where the sampler stands.

    Returns:
        The denoised frames (N, C, h, w) for each list of conditionings.
    """
    keyframes, layers = now.matches.keyframes, run.edit.backbone.attention
    matches = run.edit.correspondences
    near = chunk_neighbours(len(call.x), matches.interval, torch.tensor(matches.starts))
    source = SourceKeyframePass(keyframes, names=frozenset((*layers, *now.injected)))
    run.run_on_source(call, source)
    features = source.kept
    joint = KeyframePass(
        keyframes,
        source={name: features[name] for name in now.injected},
        limit=run.edit.attended_keyframes,
        remembered=0,
    )
    call.run(run, joint)

    def make(frames: Tensor) -> PropagationPass:
        seen = SourceMatchPass(
            frames,
            names=frozenset(now.hidden),
            bank=source.bank,
            near=near.of(frames),
            keyframe_features=features,
        )
        run.run_on_source(call, seen)
        return PropagationPass(
            frames,
            source=seen.kept,
            bank=joint.bank,
            near=seen.near,
            tokens=seen.tokens,
            weight=lambda layer: seen.near.weight,
        )

    return run.over_frames(call, make)


def carry_in_early_steps(run: EditRun, now: Moment, denoised: Tensor) -> Tensor:
    """Makes the denoised frames of the keyframes' in early steps.

    Args:
        run: The sampling run.
        now: Where the sampler stands.
        denoised: The denoised frames, (N, C, h, w).

    Returns:
        (N, C, h, w).
    """
    plan = run.plan(now)
    # Guidance may keep what it returned.
    return carry_denoised(plan, denoised.clone()) if plan.carries else denoised


MODES: dict[str, Mode] = {
    "tokenflow": Mode(EditRun.edit_jointly, after_guidance=carry_in_early_steps),
    "joint attention": Mode(joint_attention),
    "first frame": Mode(first_frame),
    "sparse-causal": Mode(sparse_causal),
    "per frame": Mode(per_frame, per_frame=True),
    "tokenflow, public code": Mode(public_code, of_unets=True),
    "fatezero": Mode(fatezero.fatezero, of_unets=True),
    "rerender": Mode(
        rerender.rerender,
        of_unets=True,
        after_guidance=rerender.fuse_with_first_frame,
        needs_frames=True,
        needs=("cv2", "kornia"),
    ),
}
