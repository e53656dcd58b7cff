"""Memory that runs out at any allocation of the pack: smaller passes and the same edit, or the
host's own error and nothing left.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from comfy import model_management

from .tools.allocations import Allocations
from .tools.graph import Keep, Pictures, edit, frames, plain
from .tools.harness import Bench
from .tools.moments import drawn

ONCE, FOR_GOOD = 12, 6
# One keyframe: with fewer of several edited together the edit would be another. In memory:
# safetensors makes other errors of torch's.
PROMPT = edit(storage="memory", interval=3, frames_per_pass=0)


def counted(bench: Bench) -> int:
    """How often a good run allocates."""
    bench.settle(PROMPT)
    with Allocations() as whole:
        bench.run(PROMPT)
    bench.run(plain())
    assert whole.count > 100
    return whole.count


def test_memory_that_runs_out_once_is_made_up_for_or_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    went_on = 0
    for number, moment in enumerate(drawn(counted(bench), ONCE, seed=5)):
        caplog.clear()
        with Allocations(moment) as short:
            outcome = bench.run(PROMPT)
        told = [
            record
            for record in caplog.records
            if record.levelno == logging.WARNING and "out of memory, on with" in record.getMessage()
        ]
        if outcome.error is None:
            same = Keep.kept[0].equal(bench.good)
            assert len(told) == 1 or (same and not told), short.reached
            went_on += len(told)
        else:
            assert outcome.error.endswith("OutOfMemoryError"), (short.reached, outcome)
        bench.check_after(outcome, number, tolerance=1e-4)
    assert went_on


def test_memory_that_is_gone_for_good_is_told(bench: Bench) -> None:
    for number, moment in enumerate(drawn(counted(bench), FOR_GOOD, seed=6)):
        with Allocations(moment, sys.maxsize) as short:
            outcome = bench.run(PROMPT)
        assert (outcome.error or "").endswith("OutOfMemoryError"), (short.reached, outcome)
        bench.check_after(outcome, number)


def test_memory_that_runs_out_in_the_vae_is_not_taken_for_a_wrong_vae(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: Any) -> None:
        raise model_management.OOM_EXCEPTION("no room")

    frames()  # made by the same decoder
    monkeypatch.setattr(Pictures, "decode", decode)
    outcome = bench.run(edit(views=True))
    assert (outcome.node, outcome.error) == ("check", "torch.OutOfMemoryError")
    bench.run(plain())
    bench.clear_output()
