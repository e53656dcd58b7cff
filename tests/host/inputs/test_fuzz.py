"""Thousands of calls of the nodes with anything: each gives a sane result, or an error that says
which input is wrong and what to do.

A quarter of the ten thousand that CALLS lists, the same in every run. TOKENFLOW_FUZZ=1, before a
release, makes all of them, TOKENFLOW_FUZZ=5 five times as many, others each time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenflow_pack.host.files.folders import SUFFIX
from tokenflow_pack.host.validation.errors import NodeError

from ..helpers import SIZE, untouched
from ..once import once_a_session
from ..small import stock, tiny_model
from .bad_files import demo, good_file
from .bad_input import (
    APPLY,
    BUILD,
    CARRY,
    CHECK,
    COMPARE,
    CORRESPONDENCES,
    DEMO,
    ENCODE,
    EXTRACT,
    FEATURES,
    FIND_MASK,
    FOLDER,
    GOOD,
    INJECTION,
    INVERT,
    LOAD,
    METRICS,
    NODES,
    PICK,
    SAMPLER,
    SAVE,
    TO_VIDEO,
    TUNE,
    run,
    still_good,
    told,
)
from .fuzz_results import SANE, sane_path
from .fuzz_values import images, values

TIMES = float(os.environ.get("TOKENFLOW_FUZZ", "0.25"))
# By node, and of damaged files: many where a call is short.
CALLS = {
    INVERT: 700,
    SAVE: 900,
    LOAD: 900,
    EXTRACT: 400,
    BUILD: 800,
    INJECTION: 700,
    SAMPLER: 450,
    APPLY: 800,
    METRICS: 400,
    COMPARE: 900,
    CHECK: 250,
    TUNE: 150,
    FEATURES: 600,
    CORRESPONDENCES: 400,
    FIND_MASK: 250,
    DEMO: 100,
    ENCODE: 400,
    TO_VIDEO: 300,
    FOLDER: 300,
    PICK: 300,
    CARRY: 400,
}
FILES = 400
EVERY = 100  # calls after which a good one is made, which has to give the same bits as before
counted: Counter[str] = Counter()
passed: Counter[str] = Counter()


def fuzzed(calls: int) -> settings:
    return settings(
        max_examples=round(TIMES * calls),
        deadline=None,
        database=None,
        derandomize=TIMES <= 1,
        suppress_health_check=list(HealthCheck),
    )


@once_a_session
def inputs_of(node: str) -> list[Any]:
    return NODES[node].define_schema().inputs


@st.composite
def inputs(draw: Callable[[Any], Any], node: str) -> dict[str, Any]:
    """What is changed of a node's good call: up to three inputs.

    Clips that are compared are sometimes of one size.
    """
    changed = draw(st.lists(st.sampled_from(inputs_of(node)), min_size=0, max_size=3, unique_by=id))
    drawn = {wanted.id: draw(values(wanted)) for wanted in changed}
    if node in (METRICS, COMPARE) and draw(st.integers(0, 9)) == 9:
        drawn["source"] = drawn["edited"] = draw(images())
    return drawn


def attempt(
    node: str, work: Callable[[], tuple[Any, ...]], sane: Callable[[tuple[Any, ...]], None]
) -> None:
    """Makes one call."""
    counted[node] += 1
    refusal = None
    try:
        out = work()
    except NodeError as error:
        refusal = error
    if refusal is None:
        passed[node] += 1
        sane(out)
    else:
        assert refusal.node == node
        assert refusal.socket in {
            name for wanted in inputs_of(node) for name in (wanted.id, wanted.display_name)
        } | {None}
        told(refusal)
    if counted[node] % EVERY == 0:
        still_good(node)


@pytest.mark.parametrize("node", [node for node in NODES if node != DEMO])
def test_anything_is_edited_or_refused(node: str) -> None:
    @fuzzed(CALLS[node])
    @given(inputs(node))
    def fuzz(changes: dict[str, Any]) -> None:
        attempt(
            node,
            lambda: run(node, **changes),
            lambda out: SANE[node]({**GOOD[node](), **changes}, *out),
        )

    still_good(node)
    with untouched(tiny_model()):
        fuzz()
        # What tuning put on weights the host takes off with its next load.
        stock(tiny_model(), clip=(1, SIZE))


# Files


@st.composite
def damaged(draw: Callable[[Any], Any]) -> bytes:
    """A stored inversion with a part of it cut out, doubled or replaced."""
    good = good_file()
    start = draw(st.one_of(st.integers(0, 2000), st.integers(0, len(good))))
    length = draw(st.one_of(st.integers(0, 8), st.integers(0, len(good))))
    part = draw(
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from([b"-1", b"1e999", b"9" * 30, b'"F16"', b"\xff" * 8, b"{" * 50, b"NaN"]),
        )
    )
    return good[:start] + part + good[start + length :]


def test_damaged_files_are_refused_or_are_whole() -> None:
    path = Path(folder_paths.get_output_directory(), f"damaged{SUFFIX}")

    @fuzzed(FILES)
    @given(damaged())
    def fuzz(content: bytes) -> None:
        path.write_bytes(content)
        attempt(
            LOAD, lambda: run(LOAD, file=f"{path.name} [output]"), lambda out: sane_path({}, *out)
        )

    fuzz()


def test_damaged_weights_of_the_embedded_model_are_refused() -> None:
    @fuzzed(CALLS[DEMO])
    @given(
        st.one_of(
            st.none(),
            st.binary(max_size=40),
            st.binary(max_size=9).map(lambda more: b"version https" + more),
        )
    )
    def fuzz(content: bytes | None) -> None:
        attempt(DEMO, demo(content), lambda out: pytest.fail("nothing was damaged"))

    fuzz()


def test_so_many_calls_were_made() -> None:
    if set(counted) != set(NODES):
        pytest.skip("some of the tests above did not run")
    # `python -m pytest -s` shows it.
    print(f"{counted.total()} calls, {passed.total()} of them with a result:", dict(counted))
    assert counted.total() >= TIMES * 10_000
    assert all(passed[node] >= 10 * TIMES for node in NODES if node != DEMO), passed
    assert all(counted[node] - passed[node] >= 100 * TIMES for node in NODES), counted - passed
