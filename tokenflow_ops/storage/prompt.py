"""A prompt reduced to what a file can hold and another prompt can be compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Relative error of a token's embedding. With the embedded model: 0.003 for a text encoder in
# bfloat16, 0.9 for gold instead of wood, 0.12 for a wood of weight 1.1.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Prompt:
    """A host's nested structure of lists, dicts, tensors and plain values, its tensors taken out.

    Attributes:
        plain: JSON, with the shape of each tensor in its place.
        tensors: In the order of their places, float32 on the CPU.
    """

    plain: Any
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, conditioning: Any) -> Prompt:
        """Takes the tensors out of a host's structure.

        Args:
            conditioning: In the host's own form.

        Returns:
            The prompt.

        Raises:
            TypeError: If it holds anything but tensors and plain values (a ControlNet, hooks), with
                the name of the option.
        """
        return cls(_plain(conditioning, "prompt"), tuple(_tensors(conditioning)))

    def is_same(self, other: Prompt) -> bool:
        """Tells whether both say the same, but for rounding."""
        if self.plain != other.plain or len(self.tensors) != len(other.tensors):
            return False
        return all(
            one.shape == two.shape and _close(one, two)
            for one, two in zip(self.tensors, other.tensors, strict=True)
        )


def _plain(value: Any, name: str) -> Any:
    """A host's structure with the shapes of its tensors in their places."""
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape)}
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: _plain(item, key) for key, item in sorted(value.items())}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"'{name}' ({type(value).__name__})")


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a host's structure, in the order of their places."""
    if isinstance(value, Tensor):
        yield value.detach().to("cpu", torch.float32).contiguous()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for _, item in sorted(value.items()):
            yield from _tensors(item)


def _close(one: Tensor, two: Tensor) -> bool:
    """Row by row: a single word is a small part of the whole."""
    error, size = (torch.atleast_1d(part).norm(dim=-1) for part in (one - two, two))
    return bool((error <= TOLERANCE * size).all())
