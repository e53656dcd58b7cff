"""The benchmark of films, rehearsed on a few frames."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from bench.costs import film


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_a_film_is_edited_on_a_server_and_told_of(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(size=32, steps=1, interval=4, refinement=None)
    made = film.Film(27)  # to and fro, and two windows of keyframes
    film.edit(server, made, options)
    assert 0 < made.own <= made.peak
    assert 0 < made.before <= made.peak
    assert min(made.seconds, made.work) > 0
    assert made.nodes.keys() >= {"TokenFlowEncodeVideo", "TokenFlowSampler", "TokenFlowMetrics"}
    film.report([made], options)
    told = capsys.readouterr().out
    assert told.count("| 27 |") == 2
    assert "edit_1" in told
