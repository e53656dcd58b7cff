"""The source's row of the public code, which is matched and propagated like the edit's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..keyframes import Neighbours
from ..propagation import propagate
from ..reference import match_to_keyframes
from .base import Bank, CapturePass
from .calls import AttentionCall


@dataclass(kw_only=True)
class SourceKeyframePass(CapturePass):
    """The source's keyframes, recorded, with their attention's output tokens left for `SourceMatchPass` (the public code's source row)."""

    bank: Bank

    def attention(self, call: AttentionCall) -> Tensor:
        tokens = super().attention(call)
        for place, part in zip(call.places, tokens.chunk(self.rows(tokens)), strict=True):
            self.bank[call.layer, place] = part
        return tokens


@dataclass(kw_only=True)
class SourceMatchPass(CapturePass):
    """The source's frames as the public code sees them: matched in every layer on features that were themselves propagated.

    bank: the source keyframes' output tokens. near: the frames' positions and weights in it. keyframe_features: by layer (k, P, C).
    tokens: filled with past and future token indices (n, P) by layer.
    """

    bank: Bank
    near: Neighbours
    keyframe_features: Mapping[str, Tensor]
    tokens: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attention(self, call: AttentionCall) -> Tensor:
        places = call.places
        first = call.x.chunk(len(places))[places.index(min(places))]
        past, future = match_to_keyframes(first, self.keyframe_features[call.layer], self.near.past, self.near.future)
        self.tokens[call.layer] = past, future
        before, after, weight = (part.to(call.x.device) for part in (self.near.past, self.near.future, self.near.weight))
        return torch.cat([propagate(self.bank[call.layer, place], before, after, weight, past, future) for place in places])
