"""What happens in the UNet's self-attention and ResBlocks during one pass over some of the frames.

A pass travels in `transformer_options`; the wrapped forwards ask it. Rows of a batch are conditionings times frames, conditionings first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..tokenflow_ops import Neighbours, attended_keyframes, join_frames, propagate, split_frames
from ..tokenflow_ops.reference import match_to_keyframes
from .conds import Place
from .conflicts import check_same_tokens

PASS_KEY = "tokenflow_pass"


@dataclass
class AttentionCall:
    """One call of a self-attention module.

    original: the module's forward as it was. x: (rows * n, P, C). context, value: None or like x. options: the host's transformer_options.
    """

    layer: str
    module: Any
    original: Callable[..., Tensor]
    x: Tensor
    context: Tensor | None
    value: Tensor | None
    mask: Tensor | None
    options: Mapping[str, Any]

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        """The module's own attention and projections on other tokens."""
        return self.original(x, context=context, value=value, mask=self.mask, transformer_options=self.options)

    def run_injected(self, q_source: Tensor, k_source: Tensor, value: Tensor) -> Tensor:
        """The module with queries and keys projected from source features, through the host's attention backend."""
        module = self.module
        q, k, v = module.to_q(q_source), module.to_k(k_source), module.to_v(value)
        out = optimized_attention(q, k, v, module.heads, attn_precision=module.attn_precision, transformer_options=self.options)
        return module.to_out(out)

    def run_windows(self, q_from: Tensor, k_from: Tensor, v_from: Tensor, windows: Tensor) -> Tensor:
        """The module with every frame attending to some of the keyframes only.

        q_from: (rows, n, P, C), k_from and v_from: (rows, k, P, C) tokens to project. windows: (n, L) positions among the k.
        Returns: (rows * n, P, C).
        """
        module = self.module
        q, k, v = module.to_q(q_from), module.to_k(k_from), module.to_v(v_from)
        out = [
            optimized_attention(
                q[:, i],
                k[:, window].flatten(1, 2),
                v[:, window].flatten(1, 2),
                module.heads,
                attn_precision=module.attn_precision,
                transformer_options=self.options,
            )
            for i, window in enumerate(windows.tolist())
        ]
        return module.to_out(torch.stack(out, 1).flatten(0, 1))


@dataclass
class Pass:
    """A pass that changes nothing: frames that only have to be processed in smaller batches.

    frames: (n,) frame numbers. place: where each conditioning of the batch stands, by uuid.
    source: for injected layers the source's tokens (n, P, C) or hidden features (n, C, h, w); empty without injection.
    node: the node's name for errors, known when the pass runs.
    """

    frames: Tensor
    place: Mapping[Any, Place] = field(default_factory=dict)
    source: Mapping[str, Tensor] = field(default_factory=dict)
    node: str = ""

    @property
    def plain(self) -> bool:
        """Whether every layer runs as the host runs it."""
        return type(self) is Pass and not self.source

    def attention(self, call: AttentionCall) -> Tensor:
        """The module's output tokens (rows * n, P, C)."""
        if call.layer not in self.source:
            return call.run(call.x, call.context, call.value)
        source = self.source_rows(call.layer, call.x)
        return call.run_injected(source, source, _value(call))

    def hidden(self, path: str, hidden: Tensor, options: Mapping[str, Any]) -> Tensor:
        """A ResBlock's residual branch (rows * n, C, h, w): the source's where it is injected."""
        return self.source_rows(path, hidden) if path in self.source else hidden

    def rows(self, tensor: Tensor) -> int:
        """How many conditionings the batch holds."""
        return tensor.shape[0] // len(self.frames)

    def source_rows(self, name: str, like: Tensor) -> Tensor:
        """The source's features, repeated for every conditioning of the batch, on the device and in the dtype of `like`."""
        source = self.source[name].to(like)
        check_same_tokens(self.node, name, like.shape[1:], source.shape[1:])
        return source.repeat(self.rows(like), *[1] * (source.ndim - 1))

    def places(self, options: Mapping[str, Any]) -> list[Place]:
        """The conditionings of the batch, in its order."""
        return [self.place[uuid] for uuid in options["uuids"]]


def _value(call: AttentionCall) -> Tensor:
    """The tokens that values are projected from."""
    return next(t for t in (call.value, call.context, call.x) if t is not None)


@dataclass
class CapturePass(Pass):
    """Records self-attention inputs phi_l and ResBlock features of the source on its way.

    Of several source prompts combined, the first one's are recorded.
    names: layers to record. device: where to keep them, None for where they are.
    kept: filled with (n, P, C) or (n, C, h, w) tensors.
    """

    names: frozenset[str] = frozenset()
    device: torch.device | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    _kept_of: dict[str, Place] = field(default_factory=dict)

    def attention(self, call: AttentionCall) -> Tensor:
        self.keep(call.layer, call.x, call.options)
        return super().attention(call)

    def hidden(self, path: str, hidden: Tensor, options: Mapping[str, Any]) -> Tensor:
        self.keep(path, hidden, options)
        return hidden

    def keep(self, name: str, tensor: Tensor, options: Mapping[str, Any]) -> None:
        """Records the first conditioning's rows, which the host may have put into this batch or another."""
        if name not in self.names:
            return
        place, row = min((place, row) for row, place in enumerate(self.places(options)))
        if name not in self.kept or place <= self._kept_of[name]:
            self._kept_of[name] = place
            # A copy: the host's blocks work in place.
            self.kept[name] = tensor.chunk(self.rows(tensor))[row].to(self.device or tensor.device, copy=True)


# What a keyframe pass leaves for the frames, by layer and conditioning: (k, P, C) output tokens, or the tokens that values are made of.
Bank = dict[tuple[str, Place], Any]


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
            keys = next(tokens for tokens in (source, call.context, call.x) if tokens is not None)
            queries, keys, values = (part.unflatten(0, (rows, count)) for part in (queries, keys, _value(call)))
            tokens = call.run_windows(queries, keys, values, attended_keyframes(self.frames, self.frames, self.limit))
        elif source is not None:
            source = join_frames(source, rows)
            tokens = split_frames(call.run_injected(source, source, join_frames(_value(call), rows)), count)
        else:
            context, value = (None if part is None else join_frames(part, rows) for part in (call.context, call.value))
            tokens = split_frames(call.run(join_frames(call.x, rows), context, value), count)
        kept = tokens if self.keep == "output" else _value(call)
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


@dataclass(kw_only=True)
class PropagationPass(Pass):
    """Frames whose self-attention output is the keyframes', carried along the source's correspondences (paper, equation 6).

    Queries, keys, values, attention and output projection are never computed here.
    node: the node's name for errors. bank: the keyframes' output tokens. near: the frames' positions and weights in it.
    tokens: past and future token indices (n, P) of a layer.
    """

    node: str
    bank: Bank
    near: Neighbours
    tokens: Callable[[str], tuple[Tensor, Tensor]]

    def attention(self, call: AttentionCall) -> Tensor:
        past, future = (part.to(call.x.device) for part in self.tokens(call.layer))
        check_same_tokens(self.node, call.layer, call.x.shape[1:], (past.shape[1], call.x.shape[2]))
        before, after, weight = (part.to(call.x.device) for part in (self.near.past, self.near.future, self.near.weight))
        bank = (self.bank[call.layer, place] for place in self.places(call.options))
        return torch.cat([propagate(base, before, after, weight, past, future) for base in bank])


@dataclass(kw_only=True)
class SourceKeyframePass(CapturePass):
    """The source's keyframes, recorded, with their attention's output tokens left for `SourceMatchPass` (the public code's source row)."""

    bank: Bank

    def attention(self, call: AttentionCall) -> Tensor:
        tokens = super().attention(call)
        for place, part in zip(self.places(call.options), tokens.chunk(self.rows(tokens)), strict=True):
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
        places = self.places(call.options)
        first = call.x.chunk(len(places))[places.index(min(places))]
        past, future = match_to_keyframes(first, self.keyframe_features[call.layer], self.near.past, self.near.future)
        self.tokens[call.layer] = past, future
        before, after, weight = (part.to(call.x.device) for part in (self.near.past, self.near.future, self.near.weight))
        return torch.cat([propagate(self.bank[call.layer, place], before, after, weight, past, future) for place in places])
