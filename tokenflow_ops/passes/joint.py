"""Attention to the keyframes: among themselves, and from every frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention import join_frames, merge_tokens, split_frames
from ..keyframes import attended_keyframes
from .base import DEEP, Bank, Pass
from .calls import AttentionCall, DeepCall, Place


@dataclass
class KeyframePass(Pass):
    """Joint edit of some keyframes: extended attention in every layer (paper, equation 5).

    Attributes:
        banked: Which layers, and DEEP, the bank is to hold; all layers if None. What frames do
            not ask for would only fill the device.
        lists: Of how many lists of conditionings the bank is to hold something; of all if None.
        remembered: Of how many of the last keyframes `seen` is to hold something; of all if None.
        context: What keys and values of other keyframes are made of, which these attend to as well.
        limit: How many of the pass's keyframes, the closest in time, each attends to; 0 for all and
            the context.
        merged_from: In layers of so many tokens a keyframe sees the others' merged (see
            `merge_tokens`), and `context` and `seen` hold merged tokens; None for no layer.
        bank: What the pass has collected: the tokens after the output projection, T_base, and under
            DEEP what comes up from below full resolution.
        seen: What the pass has collected: what keys and values are made of, two (m, P, C), or one
            for both.
    """

    banked: frozenset[str] | None = None
    lists: int | None = None
    remembered: int | None = None
    context: Bank = field(default_factory=dict)
    limit: int = 0
    merged_from: int | None = None
    bank: Bank = field(init=False, repr=False, default_factory=dict)
    seen: Bank = field(init=False, repr=False, default_factory=dict)

    def remember(self, layer: str, places: list[Place], keys: Tensor, values: Tensor) -> None:
        """Keeps the tokens that keys and values are made of, in `seen`.

        Args:
            layer: The layer's path.
            places: The conditionings of the batch, in its order.
            keys: (rows * k, P, C).
            values: (rows * k, P, C).
        """
        if self.remembered == 0:
            return
        parts = (keys,) if keys is values else (keys, values)
        for place, *sides in zip(places, *(part.chunk(len(places)) for part in parts), strict=True):
            # Copies of some, so that the others' memory is free.
            self.seen[layer, place] = (
                sides
                if self.remembered is None
                else [side[-self.remembered :].clone() for side in sides]
            )

    def deep(self, call: DeepCall) -> Any:
        out = call.run()
        if call.last and DEEP in (self.banked or ()):
            self._deposit(DEEP, call.places, call.carried(out))
        return out

    def attention(self, call: AttentionCall) -> Tensor:
        rows, count = self.rows(call.x), len(self.frames)
        source = self.source_sides(call)
        queries, keys = source or (call.x, call.key_tokens)
        places = call.places
        if self.merged_from is not None and call.x.shape[1] >= self.merged_from:
            tokens = self._beside_merged(call, queries, keys)
            self._deposit(call.layer, places, tokens)
            return tokens
        self.remember(call.layer, places, keys, call.value_tokens)
        if 0 < self.limit < count:
            by_row = [
                part.unflatten(0, (rows, count)) for part in (queries, keys, call.value_tokens)
            ]
            tokens = call.run_windows(
                by_row[0],
                by_row[1],
                by_row[2],
                attended_keyframes(self.frames, self.frames, self.limit),
            )
        else:
            sides = [join_frames(part, rows) for part in (keys, call.value_tokens)]
            if self.context:
                others = made_of(self.context, call.layer, places, call.x.device)
                sides = [
                    torch.cat([own, more.flatten(1, 2)], 1)
                    for own, more in zip(sides, others, strict=True)
                ]
            joined = join_frames(queries, rows)
            tokens = split_frames(
                (call.run if source is None else call.run_injected)(joined, *sides), count
            )
        self._deposit(call.layer, places, tokens)
        return tokens

    def _deposit(self, name: str, places: list[Place], output: Tensor) -> None:
        """Puts an output, (rows * k, ...), into the bank, as far as this is to hold it."""
        if self.banked is not None and name not in self.banked:
            return
        for place, part in zip(places, output.chunk(len(places)), strict=True):
            if self.lists is None:
                self.bank[name, place] = part
            elif place[0] < self.lists:
                # A copy, so that the memory of the other lists is free.
                self.bank[name, place] = part.clone()

    def _beside_merged(self, call: AttentionCall, queries: Tensor, keys: Tensor) -> Tensor:
        """Attends with every keyframe's own tokens whole and the others' merged.

        queries, keys: what they are made of, (rows * k, P, C). Returns (rows * k, P, C).
        """
        rows, values, grid = self.rows(call.x), call.value_tokens, call.grid
        few = merge_tokens(keys, grid)
        fewer = few, few if values is keys else merge_tokens(values, grid)
        self.remember(call.layer, call.places, *fewer)
        sides = [part.unflatten(0, (rows, -1)) for part in (queries, keys, values)]
        others = [part.unflatten(0, (rows, -1)) for part in fewer]
        if self.context:
            seen = made_of(self.context, call.layer, call.places, call.x.device)
            others = [torch.cat(both, 1) for both in zip(others, seen, strict=True)]
        return call.run_beside((sides[0], sides[1], sides[2]), (others[0], others[1]))


@dataclass(kw_only=True)
class JointPass(Pass):
    """Frames that attend to the keyframes' keys and values; nothing is propagated.

    It is the paper's joint attention ablation.

    Attributes:
        keyframes: Frame numbers, (k,).
        seen: What their keys and values are made of.
        limit: As in `KeyframePass`.
    """

    keyframes: Tensor
    seen: Bank
    limit: int = 0

    def attention(self, call: AttentionCall) -> Tensor:
        rows, count = self.rows(call.x), len(self.frames)
        places = call.places
        keys, values = made_of(self.seen, call.layer, places, call.x.device)
        source = self.source_sides(call)
        queries = source[0] if source else call.x
        if 0 < self.limit < len(self.keyframes):
            windows = attended_keyframes(self.frames, self.keyframes, self.limit)
            return call.run_windows(queries.unflatten(0, (rows, count)), keys, values, windows)
        queries, keys, values = join_frames(queries, rows), keys.flatten(1, 2), values.flatten(1, 2)
        return split_frames(
            (call.run_injected if source else call.run)(queries, keys, values), count
        )


def made_of(
    seen: Bank, layer: str, places: list[Place], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns what a layer's keys and values of some keyframes are made of.

    Args:
        seen: As a `KeyframePass` has collected it.
        layer: The layer's path.
        places: The conditionings of the batch, in its order.
        device: Where to put them.

    Returns:
        Tokens of the keys and of the values, each (rows, m, P, C).
    """
    kept = [[side.to(device) for side in seen[layer, place]] for place in places]
    keys = torch.stack([parts[0] for parts in kept])
    return keys, keys if len(kept[0]) == 1 else torch.stack([parts[1] for parts in kept])
