"""Frames that take the keyframes' tokens instead of attending."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tokenflow_ops import Neighbours, propagate
from ..conflicts import check_same_tokens
from .base import AttentionCall, Bank, Pass


@dataclass(kw_only=True)
class PropagationPass(Pass):
    """Frames whose self-attention output is the keyframes', carried along the source's correspondences (paper, equation 6).

    Queries, keys, values, attention and output projection are never computed here.
    bank: the keyframes' output tokens. near: the frames' positions and weights in it.
    tokens: past and future token indices (n, P) of a layer.
    """

    bank: Bank
    near: Neighbours
    tokens: Callable[[str], tuple[Tensor, Tensor]]

    def attention(self, call: AttentionCall) -> Tensor:
        past, future = (part.to(call.x.device) for part in self.tokens(call.layer))
        check_same_tokens(self.node, call.layer, call.x.shape[1:], (past.shape[1], call.x.shape[2]))
        before, after, weight = (part.to(call.x.device) for part in (self.near.past, self.near.future, self.near.weight))
        bank = (self.bank[call.layer, place] for place in self.places(call.options))
        return torch.cat([propagate(base, before, after, weight, past, future) for base in bank])
