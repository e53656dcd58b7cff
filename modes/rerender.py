"""Rerender-A-Video's hierarchical constraints, as far as they lie inside a sampler (arXiv
2306.07954, section 4.1).
"""

from __future__ import annotations

from torch import Tensor

from ..host.edit_run import EditRun, Moment
from ..host.patching import ModelCall
from ..tokenflow_ops.baselines.fusion import fuse_with_first, match_statistics
from ..tokenflow_ops.passes import Bank, SparseCausalPass

# Shares of the schedule, as in the authors' code: shapes until, colours from.
SHAPES_UNTIL = 0.1
COLOURS_FROM = 0.8


def rerender(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """The decoder's self-attention looks at the first and the previous frame (their cross-frame
    attention).

    Unlike the authors' code: all frames are sampled, and together (theirs samples every tenth, one
    after the other, and carries them to the rest by patch matching); the flow is DIS, not GMFlow;
    pixels are not inpainted in the middle steps, which would need the autoencoder inside the
    sampler.
    """
    bank: Bank = {}
    layers = frozenset(run.edit.backbone.decoder_layers)
    return run.over_frames(
        call,
        lambda frames: SparseCausalPass(
            frames, source=run.source(call, frames, now.injected), layers=layers, bank=bank
        ),
    )


def settle_rerender(run: EditRun, now: Moment, denoised: Tensor) -> Tensor:
    """The denoised frames take shapes from the first one along the source's flow in early steps,
    and its colours in late ones.

    The paper fuses with the first frame alone, which it finds to guide better than the previous
    one.
    """
    if now.place <= SHAPES_UNTIL * now.steps:
        denoised = fuse_with_first(denoised, run.motion)
    return (
        match_statistics(denoised, denoised[0])
        if now.place >= COLOURS_FROM * now.steps
        else denoised
    )
