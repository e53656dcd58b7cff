"""Several machines that work on one clip together, each on its share of the frames.

All of them make the same calls in the same order. Whoever connects them gives every one an object
with what `Shards` asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Shards(Protocol):
    """This machine's place among those that share a clip."""

    def here(self, frames: Tensor) -> Tensor:
        """Returns those of some frames (n,) that are this machine's, in order; there may be none.

        Taken together, machine after machine, they are all of the frames.
        """

    def once(self, make: Callable[[], T]) -> T:
        """Returns what the first machine makes; the others wait for it.

        What it raises is raised on all.

        Args:
            make: Called on the first machine.

        Returns:
            What `make` has returned there.
        """

    def gather(self, part: Any) -> list[Any]:
        """Returns what every machine has made, in their order, this one's among it.

        A part holds tensors, also in lists, tuples and dictionaries.
        """


class Alone:
    """The whole clip on this machine."""

    def here(self, frames: Tensor) -> Tensor:
        return frames

    def once(self, make: Callable[[], T]) -> T:
        return make()

    def gather(self, part: Any) -> list[Any]:
        return [part]


ALONE = Alone()
