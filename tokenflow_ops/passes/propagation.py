"""Frames that take the keyframes' tokens instead of attending."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..keyframes import Neighbours
from ..matching.correspondence import carry
from ..propagation import propagate
from .base import DEEP, Bank, Pass, check_same_shape
from .calls import AttentionCall, DeepCall


@dataclass(kw_only=True)
class PropagationPass(Pass):
    """Frames whose self-attention output is the keyframes', carried along the source's matches.

    This is the paper's equation 6. Queries, keys, values, attention and output projection are never
    computed here.

    Attributes:
        bank: The keyframes' output tokens.
        near: The frames' positions and weights in it.
        tokens: Gives past and future token indices (n, P) of a layer.
        weight: Gives the future's share of a layer's tokens, (n,) or (n, P).
        finest: If given, all that comes up from below the UNet's full resolution is the keyframes'
            too, carried along this layer's matches, on a grid of so many rows and columns; nothing
            down there runs. Of a transformer it is what its inner blocks add.
    """

    bank: Bank
    near: Neighbours
    tokens: Callable[[str], tuple[Tensor, Tensor]]
    weight: Callable[[str], Tensor]
    finest: tuple[str, tuple[int, int]] | None = None

    @property
    def skips_deep(self) -> bool:
        return self.finest is not None

    def deep(self, call: DeepCall) -> Any:
        if self.finest is None:
            return call.run()
        if not call.last:
            return call.nothing()
        layer, grid = self.finest
        sides, weight = self.tokens(layer), self.weight(layer)
        return call.resume(
            torch.cat(
                [
                    carry(self.bank[DEEP, place].to(call.device), self.near, sides, grid, weight)
                    for place in call.places
                ]
            )
        )

    def attention(self, call: AttentionCall) -> Tensor:
        past, future = (part.to(call.x.device) for part in self.tokens(call.layer))
        check_same_shape(call.layer, call.x.shape[1:], (past.shape[1], call.x.shape[2]))
        before, after, weight = (
            part.to(call.x.device)
            for part in (self.near.past, self.near.future, self.weight(call.layer))
        )
        bank = (self.bank[call.layer, place].to(call.x.device) for place in call.places)
        return torch.cat([propagate(base, before, after, weight, past, future) for base in bank])
