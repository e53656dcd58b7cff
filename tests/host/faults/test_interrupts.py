"""Interrupts at any moment of a whole edit: the run ends within one call of the model, and nothing of it stays."""

from __future__ import annotations

from comfy import model_management

from ..helpers import watched
from .graph import Ready, edit, plain
from .harness import Bench
from .moments import at_call, drawn
from .plain import model

MOMENTS = 100


def test_an_interrupt_at_any_moment_ends_the_run_and_leaves_nothing(bench: Bench) -> None:
    made: list[int] = []
    Ready.model = watched(model(), lambda _: made.append(1))
    prompt = edit(views=True)
    bench.settle(prompt)
    with at_call() as calls:
        bench.run(prompt)
    ended: list[str] = []
    bench.run(plain())
    for number, moment in enumerate(drawn(calls.count, MOMENTS, seed=0)):
        made.clear()
        before: list[int] = []

        def stop(before: list[int] = before) -> None:
            before.append(len(made))
            model_management.interrupt_current_processing(True)

        with at_call(moment, stop) as stopped:
            outcome = bench.run(prompt)
        assert outcome.error in ("interrupted", None), (stopped.reached, outcome)
        assert len(made) - before[0] <= 1, stopped.reached
        bench.check_after(outcome, number)
        ended.append(outcome.node)
    print({n: ended.count(n) for n in set(ended)}, calls.count)
    assert set(ended) >= {"invert", "extract", "build", "sample"}
