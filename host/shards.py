"""Several hosts that work on one clip together, each on its share of the frames. A host is alone unless somebody connects it to others.

All of them run the same graph and come by the same calls in the same order. Whoever connects them (cluster/, which is no part of a release)
gives every host an object with what `Shards` asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Shards(Protocol):
    """This host's place among those that share a clip."""

    def own(self, frames: Tensor) -> Tensor:
        """Those of some frames (n,) that are this host's, in order; on the hosts one after the other they are all. May be none."""

    def once(self, make: Callable[[], T]) -> T:
        """What the first host makes; the others wait for it. What it raises is raised on all."""

    def gather(self, part: Any) -> list[Any]:
        """What every host has made, in their order, this one's among it: tensors, also in lists, tuples and dictionaries."""


class Alone:
    """The whole clip on this host."""

    def own(self, frames: Tensor) -> Tensor:
        return frames

    def once(self, make: Callable[[], T]) -> T:
        return make()

    def gather(self, part: Any) -> list[Any]:
        return [part]


ALONE = Alone()
_together: Shards = ALONE


def together() -> Shards:
    """The hosts that share what runs now."""
    return _together


def connect(shards: Shards) -> None:
    """From now on this host shares clips with others; with `ALONE` no more."""
    global _together
    _together = shards
