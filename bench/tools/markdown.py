"""Tables of figures, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from torch import Tensor


def figure(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def middle(values: Tensor | Sequence[float]) -> str:
    """The median."""
    return figure(median(values.tolist() if isinstance(values, Tensor) else values))


def table(columns: list[str], rows: Iterable[list[str]]) -> None:
    """Prints the rows as they come."""
    for cells in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(cells) + " |", flush=True)
