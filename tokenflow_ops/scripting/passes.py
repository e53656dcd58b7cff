"""What the UNet's layers do in the two passes of a step: keyframes among themselves, and frames from their tokens.

Rows R are the prompts, conditionings of one batch: (R * n, ...) with the frames of a row next to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention import join_frames, split_frames
from ..correspondence import carry
from ..keyframes import Neighbours
from ..propagation import propagate
from .layers import Forward, attend, no_forward

# By layer and keyframe, (R, k, ...): tokens after the output projection, or what keys and values are made of.
# DEEP: (R, k, C, h, w), what comes up from below the UNet's full resolution.
Bank = dict[str, Tensor]
DEEP = "deep"


@dataclass(frozen=True)
class KeyframePass:
    """Keyframes that attend to each other (paper, equation 5).

    frames: (k,) frame numbers. rows: R. source: the source's tokens (k, P, C) or features (k, C, h, w) of the layers that take them.
    context: what keys and values of other keyframes are made of, (R, m, 2, P, C), which these attend to as well.
    banked: the layers whose output is to be kept in `bank`. remembered: of how many of the last keyframes `seen` keeps that for others.
    """

    frames: Tensor
    rows: int
    source: Mapping[str, Tensor]
    context: Bank
    banked: frozenset[str]
    remembered: int
    bank: Bank = field(default_factory=dict)
    seen: Bank = field(default_factory=dict)

    def forwards(self, layers: tuple[str, ...], deep: tuple[str, ...]) -> dict[str, Forward]:
        """By module path. layers: all self-attention. deep: the blocks below full resolution."""
        hidden = {name: partial(_hidden, features) for name, features in self.source.items() if name not in layers}
        return {**{layer: partial(self._attention, layer) for layer in layers}, **hidden, deep[-1]: self._deep}

    def _attention(self, layer: str, module: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asking = self.source[layer].to(x).repeat(self.rows, 1, 1) if layer in self.source else x
        made_of = torch.stack([asking, x], 1).unflatten(0, (self.rows, -1))
        if self.remembered:
            self.seen[layer] = made_of[:, -self.remembered :].clone()
        if self.context:
            made_of = torch.cat([made_of, self.context[layer]], 1)
        keys, values = made_of.transpose(1, 2).flatten(2, 3).unbind(1)
        tokens = attend(module, join_frames(asking, self.rows), keys, values)
        if layer in self.banked:
            self.bank[layer] = tokens.unflatten(1, (len(self.frames), -1))
        return split_frames(tokens, len(self.frames))

    def _deep(self, module: Any, own: Forward, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = own(*args, **kwargs)
        if DEEP in self.banked:
            self.bank[DEEP] = out.unflatten(0, (self.rows, -1))
        return out


@dataclass(frozen=True)
class FramesPass:
    """Frames with the keyframes' tokens, carried along the source's correspondences (paper, equation 6), in place of self-attention.

    bank: of the keyframes. near: the frames' positions and weights in it. tokens: past and future token indices (n, P) of a layer.
    source: the source's features (n, C, h, w) by layer. finest: the layer, and rows and columns of its tokens, along which all that comes
    up from below full resolution is carried too, and nothing runs down there; None if it runs.
    """

    bank: Bank
    near: Neighbours
    tokens: Callable[[str], tuple[Tensor, Tensor]]
    source: Mapping[str, Tensor]
    finest: tuple[str, tuple[int, int]] | None

    def forwards(self, layers: tuple[str, ...], deep: tuple[str, ...]) -> dict[str, Forward]:
        """As of `KeyframePass`."""
        ours: dict[str, Forward] = {layer: partial(self._attention, layer) for layer in layers if layer in self.bank}
        ours |= {name: partial(_hidden, features) for name, features in self.source.items()}
        return ours if self.finest is None else {**ours, **dict.fromkeys(deep[:-1], no_forward), deep[-1]: self._deep}

    def _attention(self, layer: str, module: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sides = [part.to(x.device) for part in (self.near.past, self.near.future, self.near.weight, *self.tokens(layer))]
        return torch.cat([propagate(base, *sides) for base in self.bank[layer]])

    def _deep(self, module: Any, own: Forward, *args: Any, **kwargs: Any) -> Tensor:
        assert self.finest is not None
        layer, grid = self.finest
        return torch.cat([carry(base, self.near, self.tokens(layer), grid) for base in self.bank[DEEP]])


def _hidden(source: Tensor, module: Any, own: Forward, x: Tensor) -> Tensor:
    """The source's features (n, C, h, w) in place of the last convolution of a ResBlock's residual branch."""
    return source.to(x).repeat(len(x) // len(source), 1, 1, 1)
