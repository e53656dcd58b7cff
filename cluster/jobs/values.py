"""Cells of the table as values of inputs, by the type that the server gives these."""

from __future__ import annotations

import math
from typing import Any

from launch.comfyui.workflow import DYNAMIC_COMBO
from launch.graphs.columns import Place

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def converted(place: Place, value: Any) -> Any:
    """Converts a cell's value to the type of the input it sets.

    Args:
        place: The input.
        value: Of the cell: a text, or from JSON a number, true or false.

    Returns:
        The value as the server takes it.

    Raises:
        ValueError: For a value that does not fit; the message is what the input takes.
    """
    if place.kind in ("INT", "FLOAT"):
        return _number(place, value)
    if place.kind == "BOOLEAN":
        word = str(value).lower()
        if word not in TRUE + FALSE:
            raise ValueError("takes true or false")
        return word in TRUE
    if place.kind in ("COMBO", DYNAMIC_COMBO):
        return _choice(place, value)
    return value if isinstance(value, str) else str(value)


def _number(place: Place, value: Any) -> int | float:
    low, high = place.options.get("min", -math.inf), place.options.get("max", math.inf)
    kind: type[int] | type[float] = int if place.kind == "INT" else float
    wanted = f"takes a {'whole ' if kind is int else ''}number from {low} to {high}"
    if kind is float and isinstance(value, str) and "," in value:
        wanted += ", written with a point"
    try:
        number = kind(value) if isinstance(value, str) else value
        known = (
            isinstance(number, (int, float))
            and not isinstance(number, bool)
            and math.isfinite(number)
        )
        if known and kind(number) == number and low <= number <= high:
            return kind(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(wanted)


def _choice(place: Place, value: Any) -> Any:
    """One of the list's entries, which may be other things than text."""
    options = [
        option["key"] if isinstance(option, dict) else option
        for option in place.options.get("options") or []
    ]
    for option in options:
        if str(option) == str(value):
            return option
    if options:
        more = ", ..." if len(options) > 12 else ""
        raise ValueError(f"takes one of {', '.join(map(str, options[:12]))}{more}")
    return value
