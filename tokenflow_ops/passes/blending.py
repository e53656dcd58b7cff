"""Attention of the source blended into the edit's (FateZero)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..baselines.blending import PromptChange, attend, attention_maps
from .base import CapturePass
from .calls import AttentionCall, Place
from .cross_frame import SparseCausalPass


@dataclass(kw_only=True)
class SourceMapsPass(CapturePass):
    """Records beside self-attention's inputs what the source's cross-attention looks at.

    These are maps (n, heads, P, T) of the layers in `names`.

    Attributes:
        words: Tokens T of the source prompt that is recorded; a batch with longer prompts holds it
            several times over.
    """

    words: int

    def cross_attention(self, call: AttentionCall) -> Tensor:
        if call.layer in self.names:
            module = call.module
            maps = attention_maps(
                module.to_q(call.x), module.to_k(call.key_tokens[:, : self.words]), module.heads
            )
            self.keep(call.layer, maps, call.places)
        return super().cross_attention(call)


@dataclass(kw_only=True)
class BlendedPass(SparseCausalPass):
    """Frames that attend to the first and the previous frame, with attention maps of the source.

    They have the source's maps where the edit changes nothing.

    Attributes:
        maps: For blended layers the source's tokens (n, P, C) in self-attention, its maps
            (n, heads, P, T') in cross-attention.
        changes: What the prompts change, for the conditionings that are blended.
    """

    maps: Mapping[str, Tensor]
    changes: Mapping[Place, PromptChange]

    def attention(self, call: AttentionCall) -> Tensor:
        own = super().attention(call)
        if call.layer not in self.maps:
            return own
        source = self.maps[call.layer].to(call.x.device).repeat(self.rows(call.x), 1, 1)
        # The source's maps on the edit's values: the very attention of source queries and keys.
        theirs = self.attend(call, source, source, " of the source")
        grid = call.grid
        everywhere = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device).chunk(
            self.rows(own)
        )
        regions = [
            self.changes[place].region(grid).to(own.device)
            if place in self.changes
            else everywhere[row]
            for row, place in enumerate(call.places)
        ]
        return torch.where(torch.cat(regions)[..., None], own, theirs)

    def cross_attention(self, call: AttentionCall) -> Tensor:
        tokens = super().cross_attention(call)
        if call.layer not in self.maps:
            return tokens
        parts = list(tokens.chunk(self.rows(tokens)))
        for row, place in enumerate(call.places):
            if place in self.changes:
                parts[row] = self._with_source_maps(call, row, self.changes[place])
        return torch.cat(parts)

    def _with_source_maps(self, call: AttentionCall, row: int, change: PromptChange) -> Tensor:
        module, words = call.module, change.closest.shape[1]
        x, keys, values = (
            part.chunk(self.rows(call.x))[row]
            for part in (call.x, call.key_tokens, call.value_tokens)
        )
        own = attention_maps(module.to_q(x), module.to_k(keys[:, :words]), module.heads)
        return call.project_out(
            attend(change.blend(self.maps[call.layer].to(own), own), module.to_v(values[:, :words]))
        )
