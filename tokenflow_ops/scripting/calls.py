"""A pipeline's UNet during a pass: its layers ask the pass, and are afterwards as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.grid import token_grid
from ..passes import AttentionCall, DeepCall, Pass, Place
from .layers import Forward, nothing


@dataclass
class PipelineAttention(AttentionCall):
    """One call of an attention module of diffusers.

    Attributes:
        original: The module's own forward.
        size: Rows and columns of the latents.
    """

    original: Callable[..., Any]
    size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        return token_grid(self.x.shape[1], *self.size)

    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        """Runs the module as it is on other tokens.

        Args:
            x: Tokens to project to queries, (b, P, C).
            context: Tokens to project to keys, (b, P', C'), or None for `x`.
            value: Tokens to project to values, (b, P', C'), or None for those of the keys.

        Returns:
            (b, P, C), after the output projection.
        """
        return self.run_injected(
            x, x if context is None else context, self.value_of(x, context, value)
        )

    @staticmethod
    def value_of(x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        """Returns the tokens that values are projected from.

        Args:
            x: Those of the queries.
            context: Those of the keys, or None for `x`.
            value: Those of the values, or None for those of the keys.

        Returns:
            The last of them that is not None.
        """
        return next(part for part in (value, context, x) if part is not None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends by torch's own attention, before the output projection.

        Args:
            q: Projected queries, (b, P, C).
            k: Projected keys, (b, P', C).
            v: Projected values, (b, P', C).

        Returns:
            (b, P, C).
        """
        q, k, v = (
            part.unflatten(-1, (self.module.heads, -1)).transpose(1, 2) for part in (q, k, v)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def project_out(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.module.to_out[0](tokens)
        return out


@dataclass
class PipelineDeep(DeepCall):
    """One call of a block below full resolution of a pipeline's UNet.

    Attributes:
        module: The block.
        original: The block's own forward.
        args: Its positional arguments, the hidden states first.
        kwargs: Its named arguments; they may hold the hidden states instead.
    """

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
    work: Pass,
    places: list[Place],
    layers: tuple[str, ...],
    deep: tuple[str, ...],
    size: tuple[int, int],
) -> dict[str, Forward]:
    """Makes what layers do in place of their own forwards during a pass.

    Args:
        work: The pass.
        places: The conditionings of the batch, in its order.
        layers: Paths of all self-attention.
        deep: Paths of the blocks below full resolution, in order.
        size: Rows and columns of the latents.

    Returns:
        By module path the forward, as `replaced` takes it.
    """

    def attention(
        layer: str, module: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        return work.attention(PipelineAttention(layer, module, x, None, None, places, own, size))

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
