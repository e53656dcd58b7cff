"""Seconds and peak memory of a piece of work.

Of this process, and of the device where there is one.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20
T = TypeVar("T")


@dataclass
class Held:
    """MiB that were held at the beginning, and most at once."""

    before: float
    most: float

    @property
    def more(self) -> float:
        """How much more than at the beginning."""
        return self.most - self.before


class Peak:
    """What a block held; None where there is no device, and where this system does not say."""

    process: Held | None = None
    device: Held | None = None

    @property
    def mib(self) -> float | None:
        """How much more than at the beginning was held at once: on the device where there is one,
        else by the process.
        """
        held = self.device or self.process
        return None if held is None else held.more


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Fills the Peak it gives when the block ends.

    The process: Linux's resident set, freed memory handed back to the system before.
    """
    found = Peak()
    gc.collect()
    on_device, in_process = torch.cuda.is_available(), CLEAR.exists()
    if on_device:
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated() / MIB
    if in_process:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")  # the high-water mark begins anew
        resident = _status("VmRSS")
    yield found
    if on_device:
        found.device = Held(allocated, torch.cuda.max_memory_allocated() / MIB)
    if in_process:
        # The kernel counts both in passing, not to the page.
        found.process = Held(resident, max(resident, _status("VmHWM")))


def _status(name: str) -> float:
    """A line of /proc/self/status in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) / 1024


@dataclass(frozen=True)
class Spent:
    """What a piece of work took. seconds: of the clock with an accelerator, else of this process on
    all cores: others do not count.
    """

    seconds: float
    peak: Peak


def spent_on(work: Callable[[], T]) -> tuple[T, Spent]:
    """Does the work, and waits for what it started on the device.

    Returns: what it gave, what it took.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    with peak_memory() as peak:
        start = clock()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = clock() - start
    return result, Spent(seconds, peak)


def highest(rounds: Sequence[Held | None]) -> str:
    """The most of all rounds that was held beyond what was held before, for people;
    empty where it is not known.
    """
    known = [held.more for held in rounds if held is not None]
    return f"{max(known):.0f}" if known else ""


def kept(*things: Any) -> float:
    """MiB of all tensors that these objects hold in containers and attributes, however deep.

    What is shared counts once.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in _tensors(things, set())
    }
    return sum(storages.values()) / MIB


def _tensors(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        return
    within = thing if isinstance(thing, Mapping | list | tuple) else getattr(thing, "__dict__", ())
    for part in within.values() if isinstance(within, Mapping) else within:
        yield from _tensors(part, seen)
