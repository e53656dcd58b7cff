"""The source's row of the public code, which is matched and propagated like the edit's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..baselines.public_code import match_to_keyframes
from ..keyframes import Neighbours
from ..propagation import propagate
from .base import Bank, CapturePass, first_of
from .calls import AttentionCall, Place


@dataclass(kw_only=True)
class SourceKeyframePass(CapturePass):
    """The source's keyframes, recorded (the public code's source row).

    Attributes:
        bank: What the pass has collected: their attention's output tokens, for `SourceMatchPass`.
    """

    bank: Bank = field(init=False, repr=False, default_factory=dict)

    def attention(self, call: AttentionCall) -> Tensor:
        tokens = super().attention(call)
        for place, part in zip(call.places, tokens.chunk(self.rows(tokens)), strict=True):
            self.bank[call.layer, place] = part
        return tokens


@dataclass(kw_only=True)
class SourceMatchPass(CapturePass):
    """The source's frames as the public code sees them.

    They are matched in every layer on features that were themselves propagated.

    Attributes:
        bank: The source keyframes' output tokens.
        near: The frames' positions and weights in it.
        keyframe_features: By layer (k, P, C).
    """

    bank: Bank
    near: Neighbours
    keyframe_features: Mapping[str, Tensor]
    _found: dict[str, dict[Place, tuple[Tensor, Tensor]]] = field(
        init=False, repr=False, default_factory=dict
    )

    def tokens(self, layer: str) -> tuple[Tensor, Tensor]:
        """Returns past and future token indices (n, P) of a layer that has run."""
        return first_of(self._found[layer])

    def attention(self, call: AttentionCall) -> Tensor:
        places = call.places
        first = call.x.chunk(len(places))[places.index(min(places))]
        keyframes = self.keyframe_features[call.layer].to(call.x.device)
        past, future = match_to_keyframes(first, keyframes, self.near.past, self.near.future)
        self._found.setdefault(call.layer, {})[min(places)] = past, future
        before, after, weight = (
            part.to(call.x.device) for part in (self.near.past, self.near.future, self.near.weight)
        )
        bank = (self.bank[call.layer, place].to(call.x.device) for place in places)
        return torch.cat([propagate(base, before, after, weight, past, future) for base in bank])
