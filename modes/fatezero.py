"""FateZero's attention blending as a mode (arXiv 2303.09535, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..host.conditioning.controls import rows_of
from ..host.editing.edit import Moment
from ..host.editing.edit_run import EditRun
from ..host.runs.model_call import ModelCall
from ..host.validation.errors import NodeError
from ..tokenflow_ops.baselines.blending import PromptChange
from ..tokenflow_ops.features.grid import token_grid
from ..tokenflow_ops.passes import Bank, BlendedPass, Place, SourceMapsPass, SparseCausalPass
from .chain import in_turn

# Layers with more tokens keep their own maps.
MOST_TOKENS = 32**2
# Shares of the schedule with the source's maps; the authors' settings differ by clip, 0.5 to 0.9
# and 0.5 to 0.8.
SELF_UNTIL = 0.7
CROSS_UNTIL = 0.8


def fatezero(run: EditRun, call: ModelCall, now: Moment) -> list[Tensor]:
    """Lets every frame attend to the first and the previous one, with the source's attention maps.

    The source's maps are used in early steps. Self-attention takes them outside the region that the
    source's cross-attention gives to words that the edit prompt lacks; cross-attention takes them
    for the words that both prompts have. Both in the positive prompt's rows only.

    Unlike the authors' code: maps are computed again from the source's latents, whose inversion
    attends within frames, instead of stored; the words that change are found by their embeddings
    instead of named; words are not weighted, latents not blended. For models that were not tuned to
    the clip their settings attend to the middle frame alone; ours are those for tuned ones.

    Args:
        run: The sampling run.
        call: The evaluation.
        now: Where the sampler stands.

    Returns:
        The denoised frames (N, C, h, w) for each list of conditionings.

    Raises:
        NodeError: If a layer's attention could not be seen, or the source prompt has
            ControlNet or hooks.
    """
    own = [
        layer
        for layer, (tokens, _) in run.features.shapes.items()
        if tokens <= MOST_TOKENS and now.before(SELF_UNTIL)
    ]
    cross = [
        run.edit.backbone.cross[layer]
        for layer, (tokens, _) in run.features.shapes.items()
        if tokens <= MOST_TOKENS
    ]
    layers = frozenset(run.edit.backbone.attention)

    def make(frames: Tensor, before: Bank) -> SparseCausalPass:
        if not now.before(CROSS_UNTIL):
            injected_now = run.source(call, frames, now.injected)
            return SparseCausalPass(frames, source=injected_now, layers=layers, before=before)
        word_layers = _coarsest(run)
        source = _words(run.source_prompt()[0], frames)
        seen = SourceMapsPass(
            frames,
            names=frozenset((*own, *cross, *word_layers, *now.injected)),
            words=source.shape[1],
        )
        run.run_on_source(call, seen)
        _check_seen(run.node, seen)
        kept = seen.kept
        attention = (
            torch.stack([kept[layer].mean(1) for layer in word_layers]).mean(0).to(source.device)
        )
        grid = token_grid(attention.shape[1], *call.x.shape[2:])
        changes = {
            place: PromptChange.between(source, _words(entry, frames), attention, grid)
            for place, entry in _positive(run, call).items()
        }
        maps = {name: kept[name] for name in (*own, *cross)}
        injected = {name: kept[name] for name in now.injected}
        return BlendedPass(
            frames, source=injected, layers=layers, before=before, maps=maps, changes=changes
        )

    return in_turn(run, call, make)


def _coarsest(run: EditRun) -> list[str]:
    """The decoder's cross-attention layers of the fewest tokens: where words are told apart best.

    These are the 16 x 16 tokens of SD 1.5 at 512 x 512.
    """
    backbone = run.edit.backbone
    decoder = {layer: run.features.shapes[layer][0] for layer in backbone.decoder_layers}
    return [
        backbone.cross[layer]
        for layer, tokens in decoder.items()
        if tokens == min(decoder.values())
    ]


def _positive(run: EditRun, call: ModelCall) -> dict[Place, Any]:
    """The positive prompt's conditionings among those of an evaluation.

    Guiders have it at different places, or ask without it.
    """
    return {
        (i, j): entry
        for i, entries in enumerate(call.conds)
        if entries and entries is run.positive
        for j, entry in enumerate(entries)
    }


def _words(entry: dict[str, Any], frames: Tensor) -> Tensor:
    """A conditioning's token embeddings for some frames, (n, T, D)."""
    words: Tensor = rows_of(entry["model_conds"]["c_crossattn"].cond, frames)
    return words.expand(len(frames), -1, -1)


def _check_seen(node: str, seen: SourceMapsPass) -> None:
    """Raises: NodeError if a layer's attention could not be seen."""
    missing = sorted(seen.names - seen.kept.keys())
    if missing:
        raise NodeError(
            node,
            "model",
            f"{missing[0]} did not show its attention to the mode fatezero.",
            "Patches that replace attention (IPAdapter) hide it: remove them, "
            "or choose another consistency.",
        )
