"""Peak memory of a piece of work: the device's where there is one, else the process's."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20


class Peak:
    """mib: how much more than at the beginning was held at once; None where this system does not say."""

    mib: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Fills the Peak it gives when the block ends. Without a GPU: Linux's resident set, freed memory handed back to the system before."""
    found = Peak()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.mib = (torch.cuda.max_memory_allocated() - before) / MIB
        return
    if not CLEAR.exists():
        yield found
        return
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    yield found
    found.mib = (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A line of /proc/self/status in KiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])
