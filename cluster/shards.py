"""Hosts that share one clip, connected by Ray: what one of them makes reaches the others through Ray's object store.

Runs inside ComfyUI, connected by `shard_node/`. The pack's side is `host/shards.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from .board import Figures

OUT_OF_MEMORY, INTERRUPTED = "out of memory", "interrupted"


class OutOfStep(RuntimeError):
    """The hosts run different graphs, or one of them has failed in a way that the others cannot follow."""


@dataclass
class Pace:
    """How long a host has worked since the last exchange: seconds for keyframes, and for so many frames."""

    keyframes: float = 0.0
    frames: int = 0
    seconds: float = 0.0


@dataclass
class RayShards:
    """This host's place among `count` that share a clip: `Shards` of the pack.

    device: where tensors go that come from others. check: called while waiting; may raise. errors: what to raise for OUT_OF_MEMORY and
    INTERRUPTED of the first host. lead: the share of frames that the first host takes beside its keyframes, by what took how long before.
    """

    rank: int
    count: int
    board: Any
    device: torch.device
    check: Callable[[], None]
    errors: Mapping[str, type[BaseException]]
    lead: float = 0.0
    figures: Figures = field(default_factory=Figures)
    pace: Pace = field(default_factory=Pace)
    began: float | None = None  # work on frames beside keyframes

    def own(self, frames: Tensor, beside: bool = False) -> Tensor:
        if not beside:
            return frames.tensor_split(self.count)[self.rank]
        first = round(self.lead * len(frames))
        share = [frames[:first], *frames[first:].tensor_split(self.count - 1)][self.rank]
        self.pace.frames += len(share)
        self.began = time.monotonic()
        return share

    def once(self, make: Callable[[], Any]) -> Any:
        self.figures.calls += 1
        self._worked()
        if self.rank:
            return self._take("once", 0)
        began = time.monotonic()
        try:
            made = make()
        except BaseException as error:
            known = [name for name, kind in self.errors.items() if isinstance(error, kind)]
            self._leave("once", None, known[0] if known else f"{type(error).__name__}: {error}")
            raise
        self._leave("once", made)
        self.pace.keyframes += time.monotonic() - began
        return made

    def gather(self, part: Any) -> list[Any]:
        self.figures.calls += 1
        packed = _packed(part)  # waits for the device
        self._worked()
        pace, self.pace = self.pace, Pace()
        self._leave("gather", (pace, packed))
        parts = [(pace, part) if host == self.rank else self._take("gather", host) for host in range(self.count)]
        self.lead = lead([pace for pace, _ in parts], self.lead)
        return [part for _, part in parts]

    def _worked(self) -> None:
        if self.began is not None:
            self.pace.seconds += time.monotonic() - self.began
            self.began = None

    def _leave(self, kind: str, value: Any, failure: str = "") -> None:
        packed = _packed(value)
        self.figures.sent += _size(packed)
        reference = ray.put((kind, failure, packed))
        ray.get(self.board.leave.remote(self.figures.calls, self.rank, [reference], self.figures))

    def _take(self, kind: str, host: int) -> Any:
        began = time.monotonic()
        while not (references := ray.get(self.board.take.remote(self.figures.calls, host, self.rank))):
            self.check()
        their_kind, failure, packed = ray.get(references[0])
        self.figures.waited += time.monotonic() - began
        if failure in self.errors:
            raise self.errors[failure](f"{failure} on host {host}")
        if failure or their_kind != kind:
            raise OutOfStep(f"host {host} of {self.count}: {failure or f'{their_kind} where this host has {kind}'}")
        return _unpacked(packed, self.device)


def lead(paces: list[Pace], before: float) -> float:
    """The share of frames at which the first host, with its keyframes, is done when the others are; `before` if nothing is known."""
    first, others = paces[0], paces[1:]
    frames, done = sum(pace.frames for pace in paces), sum(pace.frames for pace in others)
    if not done:
        return before
    second = sum(pace.seconds for pace in others) / done
    own = first.seconds / first.frames if first.frames else second
    among_others = second / len(others)
    return min(1 / len(paces), max(0.0, (frames * among_others - first.keyframes) / (frames * (own + among_others))))


@dataclass(frozen=True)
class Packed:
    """A tensor on its way. numbers: its values, or their bits where numpy has no such type."""

    numbers: np.ndarray
    bits_of: str = ""


def _packed(value: Any) -> Any:
    """With numpy's arrays for tensors, which Ray hands over without a copy on one machine."""
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous()
        return Packed(held.view(torch.int16).numpy(), "bfloat16") if held.dtype == torch.bfloat16 else Packed(held.numpy())
    if isinstance(value, Mapping):
        return {key: _packed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_packed(part) for part in value)
    return value


def _unpacked(value: Any, device: torch.device) -> Any:
    if isinstance(value, Packed):
        held = torch.from_numpy(value.numbers.copy())  # what lies in the store cannot be written
        held = held.view(torch.bfloat16) if value.bits_of else held
        return held if held.dtype == torch.int64 else held.to(device)  # frame numbers stay on the CPU
    if isinstance(value, Mapping):
        return {key: _unpacked(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(part, device) for part in value)
    return value


def _size(value: Any) -> int:
    if isinstance(value, Packed):
        return value.numbers.nbytes
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(_size, parts))
