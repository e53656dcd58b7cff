"""Rerender-A-Video's hierarchical constraints (arXiv 2306.07954, section 4.1).

They are here as far as they lie inside a sampler.
"""

from __future__ import annotations

from torch import Tensor

from ..host.editing.edit import Moment
from ..host.editing.edit_run import EditRun
from ..host.runs.model_call import ModelCall
from ..tokenflow_ops.baselines.fusion import fuse_with_first, match_statistics
from ..tokenflow_ops.passes import SparseCausalPass
from .chain import in_turn

# Shares of the schedule, as in the authors' code: shapes until, colours from.
SHAPES_UNTIL = 0.1
COLOURS_FROM = 0.8


def rerender(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """Lets the decoder's self-attention look at the first and the previous frame.

    This is the authors' cross-frame attention.

    Unlike the authors' code: all frames are sampled, and together (theirs samples every tenth,
    one after the other, and makes the rest of them by guided patches); the flow is DIS, not
    GMFlow; pixels are not fused in the middle steps, for which each keyframe is sampled twice
    and goes through the autoencoder in between. The row of the paper's table does these too, on
    the keyframes alone (bench/tools/paper/rerender.py).

    Args:
        run: The sampling run.
        call: The evaluation.
        now: Where the sampler stands.

    Returns:
        The denoised frames (N, C, h, w) for each list of conditionings.
    """
    layers = frozenset(run.edit.backbone.decoder_layers)
    return in_turn(
        run,
        call,
        lambda frames, before: SparseCausalPass(
            frames, source=run.source(call, frames, now.injected), layers=layers, before=before
        ),
    )


def fuse_with_first_frame(run: EditRun, now: Moment, denoised: Tensor) -> Tensor:
    """Gives the denoised frames the first one's shapes in early steps, its colours in late ones.

    Shapes are taken along the source's flow. The paper fuses with the first frame alone, which it
    finds to guide better than the previous one.

    Args:
        run: The sampling run.
        now: Where the sampler stands.
        denoised: The denoised frames, (N, C, h, w).

    Returns:
        (N, C, h, w).
    """
    if now.place <= SHAPES_UNTIL * now.steps:
        denoised = fuse_with_first(denoised, run.motion)
    if now.place >= COLOURS_FROM * now.steps:
        return match_statistics(denoised, denoised[0])
    return denoised
