"""One call of a layer during a pass, as an adapter (ComfyUI, diffusers) hands it to the pass.

Rows of a batch are conditionings times frames, conditionings first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Which conditioning a row of the batch is of: the number of its list (positive, negative, ...), and
# its own in that list.
Place = tuple[int, int]


@dataclass
class AttentionCall(ABC):
    """One call of an attention module.

    Attributes:
        layer: The module's path.
        module: The module, with to_q, to_k, to_v and heads.
        x: Tokens to project to queries, (rows * n, P, C).
        context: Tokens to project to keys, (rows * n, P', C'), or None for x.
        value: Tokens to project to values, (rows * n, P', C'), or None for those of the keys.
        places: The conditionings of the batch, in its order.
    """

    layer: str
    module: Any
    x: Tensor
    context: Tensor | None
    value: Tensor | None
    places: list[Place]

    @property
    def key_tokens(self) -> Tensor:
        """The tokens that keys are projected from."""
        return self.x if self.context is None else self.context

    @property
    def value_tokens(self) -> Tensor:
        """The tokens that values are projected from."""
        return self.key_tokens if self.value is None else self.value

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens."""

    @property
    def injected(self) -> str:
        """The name of the source's features that Plug-and-Play makes queries and keys of."""
        return self.layer

    def features(self, output: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        """Lists what can be recorded of this call.

        Args:
            output: What it has returned, (rows * n, P, C).

        Returns:
            By name what makes it, (rows * n, P, C').
        """
        return {self.layer: lambda: self.x}

    def source_sides(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Tells what queries and keys are made of, where they are the source's.

        Args:
            source: The features named `injected`, (rows * n, P, C').

        Returns:
            Tokens of the queries and of the keys, (rows * n, P, C) each, as `run_injected`
            takes them.
        """
        return source, source

    @abstractmethod
    def run(self, x: Tensor, context: Tensor | None, value: Tensor | None) -> Tensor:
        """Runs the module as it is on other tokens.

        Args:
            x: Tokens to project to queries, (b, P, C).
            context: Tokens to project to keys, (b, P', C'), or None for `x`.
            value: Tokens to project to values, (b, P', C'), or None for those of the keys.

        Returns:
            (b, P, C), after the output projection.
        """

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends by the adapter's backend, before the output projection.

        Args:
            q: Projected queries, (b, P, C).
            k: Projected keys, (b, P', C).
            v: Projected values, (b, P', C).

        Returns:
            (b, P, C).
        """

    @abstractmethod
    def project_out(self, tokens: Tensor) -> Tensor:
        """Applies the module's output projection."""

    def run_injected(self, q_source: Tensor, k_source: Tensor, value: Tensor) -> Tensor:
        """Runs the module with queries and keys projected from source features.

        Args:
            q_source: Tokens to project to queries, (b, P, C).
            k_source: Tokens to project to keys, (b, P', C).
            value: Tokens to project to values, (b, P', C).

        Returns:
            (b, P, C), after the output projection.
        """
        module = self.module
        return self.project_out(
            self.attend(module.to_q(q_source), module.to_k(k_source), module.to_v(value))
        )

    def run_windows(
        self, q_from: Tensor, k_from: Tensor, v_from: Tensor, windows: Tensor
    ) -> Tensor:
        """Runs the module with every frame attending to some of the keyframes only.

        Args:
            q_from: Tokens to project to queries, (rows, n, P, C).
            k_from: Tokens to project to keys, (rows, k, P, C).
            v_from: Tokens to project to values, (rows, k, P, C).
            windows: Positions among the k, (n, L).

        Returns:
            (rows * n, P, C).
        """
        module = self.module
        q, k, v = module.to_q(q_from), module.to_k(k_from), module.to_v(v_from)
        out = [
            self.attend(q[:, i], k[:, window].flatten(1, 2), v[:, window].flatten(1, 2))
            for i, window in enumerate(windows.tolist())
        ]
        return self.project_out(torch.stack(out, 1).flatten(0, 1))

    def run_beside(
        self, sides: tuple[Tensor, Tensor, Tensor], others: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Runs the module with every frame attending to its own tokens and fewer of all others'.

        Args:
            sides: Tokens to project to queries, keys and values, (rows, n, P, C) each.
            others: Tokens to project to keys and values, (rows, m, P', C) each; the first n are
                these frames' own, which each of them leaves out for itself.

        Returns:
            (rows * n, P, C).
        """
        module = self.module
        q, k, v = module.to_q(sides[0]), module.to_k(sides[1]), module.to_v(sides[2])
        fewer = module.to_k(others[0]), module.to_v(others[1])
        out = [self.attend(*frame) for frame in beside((q, k, v), fewer)]
        return self.project_out(torch.stack(out, 1).flatten(0, 1))


def beside(
    sides: tuple[Tensor, Tensor, Tensor], others: tuple[Tensor, Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Puts every frame's own tokens beside fewer of all others'.

    Args:
        sides: Queries, keys and values, (rows, n, P, C) each.
        others: Keys and values of fewer tokens, (rows, m, P', C) each; the first n are these
            frames' own.

    Yields:
        Of each frame queries (rows, P, C), and keys and values (rows, P + (m - 1) * P', C).
    """
    queries, *whole = sides
    for i in range(queries.shape[1]):
        keys, values = (
            torch.cat([own[:, i], few[:, :i].flatten(1, 2), few[:, i + 1 :].flatten(1, 2)], 1)
            for own, few in zip(whole, others, strict=True)
        )
        yield queries[:, i], keys, values


@dataclass
class DeepCall(ABC):
    """One call of a deep layer: a UNet's below full resolution, a transformer's inner block.

    Attributes:
        path: The layer's.
        last: Whether it is the last one.
        places: The conditionings of the batch, in its order.
    """

    path: str
    last: bool
    places: list[Place]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the layer runs."""

    @abstractmethod
    def run(self) -> Any:
        """Runs the layer as it is."""

    @abstractmethod
    def nothing(self) -> Any:
        """Makes an output that costs nothing, in the form that the model hands on."""

    def carried(self, output: Any) -> Tensor:
        """Returns what frames take from the last layer's output, (rows * n, C, h, w)."""
        found: Tensor = output
        return found

    def resume(self, carried: Tensor) -> Any:
        """Makes the last layer's output of what was carried, (rows * n, C, h, w)."""
        return carried


class FeatureMismatch(ValueError):
    """A layer has features of another shape than the source's.

    Args:
        name: The layer.
        here: Its shape here, frames left out.
        source: The source's.
    """

    def __init__(self, name: str, here: tuple[int, ...], source: tuple[int, ...]) -> None:
        super().__init__(f"{name} has features of shape {here} here and {source} in the source")
        self.name, self.here, self.source = name, here, source
