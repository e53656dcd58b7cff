"""The faster search is chosen by what was measured, once for each shape of work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenflow_ops.libraries import LibraryError, library
from tokenflow_ops.matching import fastest
from tokenflow_ops.matching.fastest import FRAMES, OPERATIONS, Backends, Timings, seconds_a_frame
from tokenflow_ops.matching.search import nearest_tokens

from ..made import FAISS

StandIn = Callable[[str, str | None], None]
COARSE, FINE = torch.zeros(2, 16, 6), torch.zeros(2, 64, 4)


def measured_as(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, dict[str, float]]
) -> list[tuple[int, ...]]:
    """Replaces the measurement: seconds by tokens. Returns: the shapes measured from now on."""
    asked: list[tuple[int, ...]] = []

    def measure(features: Tensor, device: torch.device) -> dict[str, float]:
        asked.append(tuple(features.shape))
        return seconds[features.shape[1]]

    monkeypatch.setattr(fastest, "seconds_a_frame", measure)
    return asked


@FAISS
def test_every_shape_has_its_faster_backend_and_is_measured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = measured_as(
        monkeypatch, {16: {"torch": 0.0012, "faiss": 0.0005}, 64: {"torch": 0.012, "faiss": 0.031}}
    )
    timings: Timings = {}
    for _ in range(2):  # the second time by what the first one has left
        backends = Backends("auto", "cpu", timings)
        assert [backends.choose(features) for features in (COARSE, FINE, COARSE, FINE)] == [
            "faiss",
            "torch",
            "faiss",
            "torch",
        ]
        wanted = (
            "torch and FAISS (this CPU, a frame: torch 1.2 ms, FAISS 0.5 ms for 16 x 6; "
            "torch 12 ms, FAISS 31 ms for 64 x 4)"
        )
        assert str(backends) == wanted
    assert asked == [COARSE.shape, FINE.shape]


@FAISS
@pytest.mark.parametrize("change", ["threads", "torch", "faiss", "dtype", "tokens", "width", "CPU"])
def test_what_a_timing_depends_on_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    faiss: Any = library("faiss")
    asked = measured_as(monkeypatch, {size: {"torch": 1.0, "faiss": 2.0} for size in (16, 17)})
    timings: Timings = {}
    Backends("auto", "cpu", timings).choose(COARSE)
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    if change in ("torch", "faiss"):
        monkeypatch.setattr({"torch": torch, "faiss": faiss}[change], "__version__", "99")
    if change == "CPU":
        monkeypatch.setattr(fastest, "_cpu", lambda: "another one")
    other = {
        "dtype": COARSE.half(),
        "tokens": torch.zeros(2, 17, 6),
        "width": torch.zeros(2, 16, 7),
    }.get(change, COARSE)
    Backends("auto", "cpu", timings).choose(other)
    assert len(asked) == len(timings) == 2


@pytest.mark.parametrize(("asked", "name"), [("torch", "torch"), ("faiss", "FAISS")])
def test_a_backend_that_is_asked_for_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, asked: str, name: str
) -> None:
    measured = measured_as(monkeypatch, {})
    backends = Backends(asked)
    assert backends.choose(COARSE) == asked
    assert str(backends) == name
    assert not measured


def test_without_faiss_it_is_torch(stand_in: StandIn) -> None:
    stand_in("faiss", None)
    backends = Backends("auto")
    assert backends.choose(COARSE) == "torch"
    assert str(backends) == "torch, FAISS is not installed"


def test_a_measurement_is_short_and_leaves_the_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches: list[tuple[str, int]] = []

    def watched(queries: Tensor, targets: Tensor, backend: str) -> Tensor:
        searches.append((backend, queries.shape[1] * targets.numel() * 2))
        return nearest_tokens(queries, targets, "torch")

    monkeypatch.setattr(fastest, "nearest_tokens", watched)
    monkeypatch.setattr(fastest, "OPERATIONS", OPERATIONS / 100)
    # Every search takes a second.
    monkeypatch.setattr(fastest, "time", SimpleNamespace(perf_counter=partial(next, count())))
    state = torch.get_rng_state()
    seconds = seconds_a_frame(
        torch.randn(3, 100, 40, generator=torch.Generator().manual_seed(0)), torch.device("cpu")
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert seconds == {"torch": 1 / FRAMES, "faiss": 1 / FRAMES}
    full = 2 * 100 * 100 * 40 * FRAMES  # frames repeat where the clip is short
    # What comes first is not timed.
    assert [work for _, work in searches[:2]] == [2 * 64 * 64 * 40] * 2
    assert [name for name, _ in searches[2:]] == ["torch", "faiss"] * (len(searches[2:]) // 2)
    assert {work for _, work in searches[2:]} == {full}
    assert full < OPERATIONS / 100
    searches.clear()
    seconds_a_frame(torch.zeros(1, 400, 160), torch.device("cpu"))
    assert max(work for _, work in searches) <= OPERATIONS / 100


FAILING = """
import torch
__version__, left = "1.0", {good}
class IndexFlatIP:
    def __init__(self, width): pass
    def add(self, rows): self.rows = torch.from_numpy(rows)
    def search(self, queries, count):
        global left
        left -= 1
        if left < 0:
            raise OSError("no kernel for this device")
        products = torch.from_numpy(queries) @ self.rows.T
        best = products.max(1, keepdim=True)
        return best.values.numpy(), products.argmax(1, keepdim=True).numpy()
"""
WITHOUT = "torch, FAISS is installed and does not work (OSError: no kernel for this device)"


def test_a_faiss_that_fails_when_it_is_measured_is_not_chosen_and_nothing_is_noted(
    stand_in: StandIn,
) -> None:
    stand_in("faiss", FAILING.format(good=0))
    timings: Timings = {}
    backends = Backends("auto", timings=timings)
    assert backends.choose(torch.randn(2, 16, 6)) == "torch"
    assert str(backends) == WITHOUT
    assert not timings


def test_a_faiss_that_fails_later_leaves_the_rest_to_torch(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandIn
) -> None:
    measured_as(monkeypatch, {16: {"torch": 0.2, "faiss": 0.1}, 64: {"torch": 0.1, "faiss": 0.2}})
    stand_in("faiss", FAILING.format(good=1))
    backends, features = (
        Backends("auto"),
        torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(0)),
    )
    for _ in range(3):
        assert torch.equal(
            backends.nearest(features, features[0]), nearest_tokens(features, features[0])
        )
    assert backends.choose(COARSE) == backends.choose(FINE) == "torch"
    assert str(backends) == WITHOUT
    with pytest.raises(LibraryError, match="no kernel"):
        Backends("faiss").nearest(features, features[0])
