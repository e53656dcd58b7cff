"""An edit of few frames in two steps, for patches of the host beside TokenFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    call,
    edit,
    matched,
)
from ..once import once_a_session

CLIP = 3, (8, 16)
ROUNDING = 1e-4
Patch = Callable[[Any], Any]


def short(model: Any = None, *both: Any, **inputs: Any) -> Tensor:
    """An edit of few frames in two steps."""
    return edit(model, *(both or (POSITIVE, NEGATIVE)), matched(*CLIP), **{"start": 0.6, **inputs})


def node(execute: Callable[..., Any], *settings: Any) -> Patch:
    """A node of the host that patches a model."""
    return lambda model: call(execute, model, *settings)[0]


def old_node(method: str, kind: type, *settings: Any) -> Patch:
    return lambda model: getattr(kind(), method)(model, *settings)[0]


@once_a_session
def plain() -> Tensor:
    return short()
