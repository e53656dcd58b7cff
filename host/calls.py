"""Calls of the host's UNet layers as passes are asked about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..tokenflow_ops.passes import AttentionCall, DeepCall, Place

# What travels in `transformer_options` during a pass: the pass, and what its layers need to know of it.
PASS_KEY, HANDOVER_KEY = "tokenflow_pass", "tokenflow_handover"  # nosec B105 (bandit takes passes for passwords)


@dataclass(frozen=True)
class Handover:
    """node: the node's name for errors. places: where each conditioning of the pass stands, by uuid."""

    node: str
    places: Mapping[Any, Place]

    def of_batch(self, options: Mapping[str, Any]) -> list[Place]:
        """The conditionings of a batch, which the host puts together by free memory, in its order."""
        return [self.places[uuid] for uuid in options["uuids"]]


@dataclass
class HostAttention(AttentionCall):
    """original: the module's forward as it was. options: the host's transformer_options."""

    original: Callable[..., Tensor]
    mask: Tensor | None
    options: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, int]:
        _, _, height, width = self.options["activations_shape"]
        return height, width

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        return self.original(x, context=context, value=value, mask=self.mask, transformer_options=self.options)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module = self.module
        out: Tensor = optimized_attention(q, k, v, module.heads, attn_precision=module.attn_precision, transformer_options=self.options)
        return out

    def project_out(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.module.to_out(tokens)
        return out


@dataclass
class HostDeep(DeepCall):
    """original: the layer's forward as it was. x: its input. args, kwargs: the others."""

    original: Callable[..., Tensor]
    x: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self) -> Tensor:
        return self.original(self.x, *self.args, **self.kwargs)

    def nothing(self) -> Tensor:
        """An output without channels: the host joins it to others and takes its height and width for the way up, at no cost."""
        height, width = self.x.shape[2:]
        if self.kwargs.get("output_shape") is not None:
            height, width = self.kwargs["output_shape"][2:]
        elif not self.args:  # a Downsample; ResBlocks and transformers are given an embedding or a context
            height, width = -(-height // 2), -(-width // 2)
        return self.x.new_empty(len(self.x), 0, height, width)
