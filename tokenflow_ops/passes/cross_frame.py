"""Attention to other frames than the keyframes, as other systems have it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import Bank, Pass
from .calls import AttentionCall


@dataclass(kw_only=True)
class SparseCausalPass(Pass):
    """Frames that attend to the first and the previous frame (Tune-A-Video, equation 6).

    The first one attends to itself. `frames` are consecutive, in the order of the clip; one pass
    follows the other, and is given what the one before has collected.

    Attributes:
        layers: Where they do; elsewhere every frame attends to itself.
        before: The `bank` of the pass before; empty in the first one.
        bank: What the pass has collected: by layer and conditioning, what keys and values of the
            first and of the last frame so far are made of, (2, 2, P, C).
    """

    layers: frozenset[str]
    before: Bank = field(default_factory=dict)
    bank: Bank = field(init=False, repr=False, default_factory=dict)

    def attention(self, call: AttentionCall) -> Tensor:
        if call.layer not in self.layers:
            return super().attention(call)
        queries, keys = self.source_sides(call) or (call.x, call.key_tokens)
        return self.attend(call, queries, keys)

    def attend(self, call: AttentionCall, queries: Tensor, keys: Tensor, kind: str = "") -> Tensor:
        """Returns the module's output tokens with queries and keys made of other tokens.

        Args:
            call: The module's call.
            queries: Tokens that queries are made of, (rows * n, P, C).
            keys: Tokens that keys are made of, (rows * n, P, C).
            kind: Under which name, after the layer's, banks know these tokens.

        Returns:
            (rows * n, P, C).
        """
        rows, count = self.rows(call.x), len(self.frames)
        own = torch.stack([keys, call.value_tokens]).unflatten(1, (rows, count))
        layer = call.layer + kind
        before = torch.stack(
            [self._before(layer, place, own[:, row]) for row, place in enumerate(call.places)], 1
        )
        keys, values = torch.cat([before, own], 2)
        # Positions: the first frame, the last one of the pass before, and this pass's frames.
        windows = torch.stack(
            [torch.zeros(count, dtype=torch.int64), torch.arange(1, count + 1)], 1
        )
        return call.run_windows(queries.unflatten(0, (rows, count)), keys, values, windows)

    def _before(self, layer: str, place: tuple[int, int], own: Tensor) -> Tensor:
        """First and previous frame of a conditioning's tokens (2, n, P, C): (2, 2, P, C).

        Collects theirs for the next pass.
        """
        before = (
            self.before[layer, place].to(own.device)
            if int(self.frames[0])
            else own[:, :1].expand(-1, 2, -1, -1)
        )
        self.bank[layer, place] = torch.stack([before[:, 0], own[:, -1]], 1)
        return before
