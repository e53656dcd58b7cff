"""Interrupts at any moment of a whole edit: the run ends within one call of the model,
and nothing of it stays.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy import model_management
from tokenflow_pack.host.steps import rehearse

from ..helpers import interrupted, watched
from .tools.graph import Ready, edit, plain
from .tools.harness import Bench
from .tools.moments import at_call, drawn, in_every_node
from .tools.plain import model

EDIT, VIEWS = {"invert", "extract", "build", "sample"}, {"check", "features", "matches"}


@pytest.mark.parametrize(("views", "moments"), [(False, 14), (True, 3)], ids=["edit", "with views"])
def test_an_interrupt_at_any_moment_ends_the_run_and_leaves_nothing(
    bench: Bench, views: bool, moments: int
) -> None:
    made: list[int] = []
    Ready.model = watched(model(), lambda _: made.append(1))
    prompt = edit(views=views)
    for once in (prompt, plain()):  # the plots' fonts stay open
        bench.run(once)
    bench.settle({name: node for name, node in prompt.items() if name not in VIEWS})
    with at_call() as calls:
        bench.run(prompt)
    ended: list[str] = []
    bench.run(plain())
    for number, moment in enumerate(
        sorted({*in_every_node(calls), *drawn(calls.count, moments, seed=0)})
    ):
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
    assert set(ended) >= (VIEWS if views else EDIT)


def test_an_interrupt_that_a_sampler_sees_while_it_is_rehearsed_is_not_lost() -> None:
    """Samplers of other packs may look for it themselves; whoever sees it takes it away."""

    def sampler(*_: Any, **__: Any) -> None:
        model_management.throw_exception_if_processing_interrupted()

    with interrupted():
        model_management.interrupt_current_processing(True)
        rehearse(
            SimpleNamespace(sampler_function=sampler, extra_options={}),
            None,
            torch.tensor([1.0, 0.0]),
        )
