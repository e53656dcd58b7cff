"""Hosts that share one clip, connected by Ray.

What one of them makes reaches the others through Ray's object store.

Runs inside ComfyUI, connected by `host_nodes/share_clips.py`. The pack's side is `host/shards.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor

from .board import Figures

OUT_OF_MEMORY, INTERRUPTED = "out of memory", "interrupted"


class OutOfStep(RuntimeError):
    """The hosts run different graphs, or one has failed in a way that the others cannot follow."""


class Failure(NamedTuple):
    """An error that all hosts answer alike.

    Attributes:
        is_it: Whether one of the first host's is such.
        raised: What the others raise then.
    """

    is_it: Callable[[BaseException], bool]
    raised: type[BaseException]


@dataclass
class RayShards:
    """This host's place among those that share a clip: `Shards` of the pack.

    Attributes:
        rank: Number of this host, from 0.
        count: How many hosts share the clip.
        board: The actor with which they leave what they have made.
        device: Where tensors go that come from others.
        check: Called while waiting; may raise.
        errors: What OUT_OF_MEMORY and INTERRUPTED are.
        figures: What sharing has cost this host.
    """

    rank: int
    count: int
    board: Any
    device: torch.device
    check: Callable[[], None]
    errors: Mapping[str, Failure]
    figures: Figures = field(default_factory=Figures)

    def here(self, frames: Tensor) -> Tensor:
        return frames.tensor_split(self.count)[self.rank]

    def once(self, make: Callable[[], Any]) -> Any:
        self.figures.calls += 1
        if self.rank:
            return self._take("once", 0)
        try:
            made = make()
        except BaseException as error:
            known = [name for name, failure in self.errors.items() if failure.is_it(error)]
            self._leave("once", None, known[0] if known else f"{type(error).__name__}: {error}")
            raise
        self._leave("once", made)
        return made

    def gather(self, part: Any) -> list[Any]:
        self.figures.calls += 1
        self._leave("gather", part)
        return [
            part if host == self.rank else self._take("gather", host) for host in range(self.count)
        ]

    def _leave(self, kind: str, value: Any, failure: str = "") -> None:
        packed = _packed(value)
        self.figures.sent += _size(packed)
        reference = ray.put((kind, failure, packed))
        ray.get(self.board.leave.remote(self.figures.calls, self.rank, [reference], self.figures))

    def _take(self, kind: str, host: int) -> Any:
        began = time.monotonic()
        while not (
            references := ray.get(self.board.take.remote(self.figures.calls, host, self.rank))
        ):
            self.check()
        their_kind, failure, packed = ray.get(references[0])
        self.figures.waited += time.monotonic() - began
        if failure in self.errors:
            raise self.errors[failure].raised(f"{failure} on host {host}")
        if failure or their_kind != kind:
            found = failure or f"{their_kind} where this host has {kind}"
            raise OutOfStep(f"host {host} of {self.count}: {found}")
        return _unpacked(packed, self.device)


@dataclass(frozen=True)
class Packed:
    """A tensor on its way.

    Attributes:
        numbers: Its values, or their bits where numpy has no such type.
        bits_of: That type, or nothing.
    """

    numbers: np.ndarray
    bits_of: str = ""


def _packed(value: Any) -> Any:
    """With numpy's arrays for tensors, which Ray hands over without a copy on one machine."""
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous()
        return (
            Packed(held.view(torch.int16).numpy(), "bfloat16")
            if held.dtype == torch.bfloat16
            else Packed(held.numpy())
        )
    if isinstance(value, Mapping):
        return {key: _packed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_packed(part) for part in value)
    return value


def _unpacked(value: Any, device: torch.device) -> Any:
    if isinstance(value, Packed):
        held = torch.from_numpy(value.numbers.copy())  # what lies in the store cannot be written
        held = held.view(torch.bfloat16) if value.bits_of else held
        # Frame numbers stay on the CPU.
        return held if held.dtype == torch.int64 else held.to(device)
    if isinstance(value, Mapping):
        return {key: _unpacked(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(part, device) for part in value)
    return value


def _size(value: Any) -> int:
    if isinstance(value, Packed):
        return value.numbers.nbytes
    parts = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, list | tuple)
        else ()
    )
    return sum(map(_size, parts))
