"""What a run says, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_nodes_first_step_is_a_line_and_the_bar_is_for_terminals(stream: io.StringIO) -> None:
    from cluster.progress import Progress

    progress = Progress(stream)
    progress.count(waiting=3, done=1)
    progress.step("worker 1", "wolf", "Sampler", 1, 20)
    progress.step("worker 1", "wolf", "Sampler", 2, 20)
    progress.count(waiting=-1, running=1)
    assert stream.getvalue().count("wolf: Sampler, 20 steps, worker 1\n") == 1
    live = isinstance(stream, Terminal)
    assert ("wolf Sampler 2/20" in stream.getvalue()) == live
    assert ("[#####...............] 1/4" in stream.getvalue()) == live
    assert live or stream.getvalue().count("\n") == 1


def test_the_table_at_the_end_has_a_line_a_job_with_the_errors_first_line() -> None:
    from cluster.progress import table

    failed = {
        "job": "bear",
        "state": "failed",
        "figures": {},
        "attempts": [{"error": "one\ntwo"}, {"error": "three\nfour"}],
    }
    done = {
        "job": "wolf",
        "state": "done",
        "figures": {"seconds": 12.34},
        "attempts": [{"error": "one"}, {"error": ""}],
    }
    assert table([done, failed]).splitlines() == [
        "job   state   seconds",
        "wolf  done    12.3",
        "bear  failed  0.0      three",
    ]
