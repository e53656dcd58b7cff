"""What keyframes leave for frames, and for other keyframes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..passes import Bank


@dataclass
class Joint:
    """What a joint pass leaves.

    Attributes:
        bank: The keyframes' tokens and deep features, for frames.
        hidden: The source's features, for frames.
        seen: What keys and values are made of, for other keyframes, on its machine alone.
        guidance: By how much every other list's denoised keyframes (k, C, h, w) differ from the
            first one's; empty where frames are denoised for all.
    """

    bank: Bank = field(default_factory=dict)
    hidden: dict[str, Tensor] = field(default_factory=dict)
    seen: Bank = field(default_factory=dict)
    guidance: list[Tensor] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of what is for frames."""
        banked = (part if isinstance(part, list) else [part] for part in self.bank.values())
        tensors = [*chain.from_iterable(banked), *self.hidden.values(), *self.guidance]
        return sum(tensor.nbytes for tensor in tensors)

    def stored(self, rows: slice, away: bool) -> Joint:
        """Keeps what some keyframes leave for frames alone, for another step.

        Args:
            rows: Which keyframes.
            away: Whether in main memory, so that the device's does not grow with the clip.

        Returns:
            Views of it, or copies where it has to be moved.
        """

        def kept(part: Tensor) -> Tensor:
            return part[rows].cpu() if away else part[rows]

        return Joint(
            {key: kept(part) for key, part in self.bank.items()},
            {name: kept(part) for name, part in self.hidden.items()},
            guidance=[kept(part) for part in self.guidance],
        )


def rows_of(bank: Bank, rows: Tensor | slice) -> Bank:
    """Picks some keyframes' tokens, copied so that the others' memory is free.

    Args:
        bank: Tokens of k keyframes by layer and place.
        rows: Which of the k.

    Returns:
        A bank of these.
    """

    def chosen(tokens: Tensor) -> Tensor:
        return tokens[rows].clone() if isinstance(rows, slice) else tokens[rows.to(tokens.device)]

    return {
        key: chosen(tokens) if isinstance(tokens, Tensor) else [chosen(part) for part in tokens]
        for key, tokens in bank.items()
    }


def joined(*banks: Bank) -> Bank:
    """Joins keyframes' tokens of several banks, in their order.

    Args:
        *banks: Of the same layers and places; those without any are left out.

    Returns:
        One bank, on each part's device of the first.
    """
    banks = tuple(bank for bank in banks if bank)
    if len(banks) < 2:
        return banks[0] if banks else {}

    def join(parts: tuple[Any, ...]) -> Any:
        if isinstance(parts[0], Tensor):
            return torch.cat([part.to(parts[0].device) for part in parts])
        return [join(sides) for sides in zip(*parts, strict=True)]

    return {key: join(tuple(bank[key] for bank in banks)) for key in banks[0]}
