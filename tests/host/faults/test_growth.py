"""Many edits one after the other take no more memory than a few."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from .tools.graph import edit, plain
from .tools.harness import Bench, Level
from .tools.moments import FAULTS

EDITS, FIRST = FAULTS or 50, 15
# What the allocator may keep, of 50 edits that each make some ten MiB.
NOISE = 8 << 20
STATUS = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    not STATUS.exists(), reason="the system does not tell a process's memory in this way"
)
def test_fifty_edits_take_no_more_than_a_few(bench: Bench) -> None:
    prompt = edit()
    bench.settle(prompt)
    sizes = []
    for _ in range(EDITS):
        assert bench.latents(prompt).equal(bench.good)
        assert bench.latents(plain()).equal(bench.reference)
        bench.clear_output()
        bench.level.check(Level.now())
        sizes.append(resident())
    gc.collect()
    assert max(sizes[FIRST:]) - max(sizes[:FIRST]) < NOISE
