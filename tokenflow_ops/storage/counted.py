"""What a host can ask how much memory it keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


class Counted(list[Tensor]):
    """Data that is, to whoever walks through lists, the tensors that it keeps in memory.

    ComfyUI under memory pressure drops those outputs first that take the most, and counts tensors
    alone, and lists of them. What it cannot count counts as nothing, and pictures would go in the
    place of an inversion of gigabytes. The list is made anew for every reader: stores fill up after
    they were made. What several outputs share counts in each of them, since none of it is free
    before the last of them goes.
    """

    @abstractmethod
    def held(self) -> Iterable[Tensor]:
        """Lists the tensors that it keeps, the same ones several times if that is easier."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(
            {id(tensor): tensor for tensor in self.held() if not _lies_in_a_file(tensor)}.values()
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: Any) -> Any:
        return [*self][index]


def _lies_in_a_file(tensor: Tensor) -> bool:
    """Whether it is mapped from a file, whose pages the system takes back by itself."""
    return getattr(tensor.untyped_storage(), "filename", None) is not None
