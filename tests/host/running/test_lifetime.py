"""What a run keeps goes with it: nothing holds a run after the host has sampled."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from tokenflow_pack.host.runs.run import Run
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.tuning import TuneAVideo

from ..helpers import SOURCE, call, edit, invert, inverted, moving_clip, tiny_model, watched


def extract() -> None:
    call(ExtractFeatures.execute, tiny_model(), inverted(3)[0], storage="memory")


def climb() -> None:
    invert(tiny_model(), moving_clip(2, 8, 8))


def tune() -> None:
    call(TuneAVideo.execute, tiny_model(), moving_clip(2, 8, 8), SOURCE, steps=1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Run]]:
    """Every run that begins."""
    begun: list[weakref.ref[Run]] = []
    begin = Run.begin

    def noted(self: Run, *args: Any) -> None:
        begun.append(weakref.ref(self))
        begin(self, *args)

    monkeypatch.setattr(Run, "begin", noted)
    return begun


@pytest.mark.parametrize("work", [edit, extract, climb, tune])
def test_a_run_is_gone_when_the_host_has_sampled(
    work: Callable[[], Any], runs: list[weakref.ref[Run]]
) -> None:
    inverted(3)
    runs.clear()
    gc.collect()
    gc.disable()  # a circle would be found only by the collector
    try:
        work()
        assert runs
        assert [run() for run in runs] == [None] * len(runs)
    finally:
        gc.enable()


def test_a_run_that_fails_goes_with_its_error(runs: list[weakref.ref[Run]]) -> None:
    def fail(args: dict[str, Any]) -> None:
        raise ValueError("here")

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValueError, match="here") as caught:
            edit(model=watched(tiny_model(), fail))
        del caught
        assert runs
        assert [run() for run in runs] == [None] * len(runs)
    finally:
        gc.enable()
