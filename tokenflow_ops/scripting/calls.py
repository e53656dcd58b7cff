"""A pipeline's UNet during a pass: its layers ask the pass, and nothing of it is left afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..passes import AttentionCall, DeepCall, Pass, Place
from .layers import Forward, nothing


@dataclass
class PipelineAttention(AttentionCall):
    """original: the module's own forward."""

    original: Callable[..., Any]

    @property
    def grid(self) -> tuple[int, int]:
        raise ValueError("diffusers' attention does not know its tokens' grid")

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        return self.run_injected(
            x, x if context is None else context, self.value_of(x, context, value)
        )

    @staticmethod
    def value_of(x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        """What values are projected from."""
        return next(part for part in (value, context, x) if part is not None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.module.heads, -1)).transpose(1, 2) for part in (q, k, v)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def project_out(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.module.to_out[0](tokens)
        return out


@dataclass
class PipelineDeep(DeepCall):
    """original: the block's own forward. args, kwargs: its arguments, the hidden states first."""

    module: Any
    original: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden_states(self) -> Tensor:
        """The block's input."""
        found: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return found

    @property
    def device(self) -> torch.device:
        return self.hidden_states.device

    def run(self) -> Any:
        return self.original(*self.args, **self.kwargs)

    def nothing(self) -> Any:
        return nothing(self.module, self.hidden_states)


def forwards(
    work: Pass, places: list[Place], layers: tuple[str, ...], deep: tuple[str, ...]
) -> dict[str, Forward]:
    """What layers do in place of their own forwards during a pass, by module path.

    places: the conditionings of the batch. layers: all self-attention. deep: the blocks below full
    resolution.
    """

    def attention(
        layer: str, module: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        return work.attention(PipelineAttention(layer, module, x, None, None, places, own))

    def hidden(path: str, module: Any, own: Forward, *args: Any, **kwargs: Any) -> Tensor:
        return work.hidden(path, own(*args, **kwargs), places)

    def below(path: str, module: Any, own: Forward, *args: Any, **kwargs: Any) -> Any:
        return work.deep(PipelineDeep(path, path == deep[-1], places, module, own, args, kwargs))

    features = {name: partial(hidden, name) for name in work.source if name not in layers}
    return {
        **{layer: partial(attention, layer) for layer in layers},
        **features,
        **{path: partial(below, path) for path in deep},
    }
