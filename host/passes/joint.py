"""Attention to the keyframes: among themselves, and from every frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...tokenflow_ops import attended_keyframes, join_frames, split_frames
from .base import AttentionCall, Bank, Pass


@dataclass
class KeyframePass(Pass):
    """Joint edit of the keyframes: extended attention in every layer (paper, equation 5).

    limit: how many keyframes, the closest in time, each attends to; 0 for all.
    keep: "output" (tokens after the output projection, T_base), or "context" (the tokens that values are made of).
    """

    limit: int = 0
    keep: str = "output"
    bank: Bank = field(default_factory=dict)

    def attention(self, call: AttentionCall) -> Tensor:
        rows, count = self.rows(call.x), len(self.frames)
        source = self.source_rows(call.layer, call.x) if call.layer in self.source else None
        if 0 < self.limit < count:
            queries = call.x if source is None else source
            keys = call.key_tokens if source is None else source
            queries, keys, values = (part.unflatten(0, (rows, count)) for part in (queries, keys, call.value_tokens))
            tokens = call.run_windows(queries, keys, values, attended_keyframes(self.frames, self.frames, self.limit))
        elif source is not None:
            source = join_frames(source, rows)
            tokens = split_frames(call.run_injected(source, source, join_frames(call.value_tokens, rows)), count)
        else:
            context, value = (None if part is None else join_frames(part, rows) for part in (call.context, call.value))
            tokens = split_frames(call.run(join_frames(call.x, rows), context, value), count)
        kept = tokens if self.keep == "output" else call.value_tokens
        for place, part in zip(self.places(call.options), kept.chunk(rows), strict=True):
            self.bank[call.layer, place] = part
        return tokens


@dataclass(kw_only=True)
class JointPass(Pass):
    """Frames that attend to the keyframes' keys and values; nothing is propagated (the paper's joint attention ablation).

    keyframes: (k,) frame numbers. keyframe_source: their source tokens where attention is injected. limit: as in `KeyframePass`.
    """

    bank: Bank
    keyframes: Tensor
    keyframe_source: Mapping[str, Tensor]
    limit: int = 0

    def attention(self, call: AttentionCall) -> Tensor:
        rows, count = self.rows(call.x), len(self.frames)
        kept = torch.stack([self.bank[call.layer, place] for place in self.places(call.options)])
        injected = call.layer in self.source
        queries = self.source_rows(call.layer, call.x) if injected else call.x
        keys = self.keyframe_source[call.layer].to(call.x).expand_as(kept) if injected else kept
        if 0 < self.limit < len(self.keyframes):
            windows = attended_keyframes(self.frames, self.keyframes, self.limit)
            return call.run_windows(queries.unflatten(0, (rows, count)), keys, kept, windows)
        queries, keys, kept = join_frames(queries, rows), keys.flatten(1, 2), kept.flatten(1, 2)
        return split_frames(call.run_injected(queries, keys, kept) if injected else call.run(queries, kept, None), count)
