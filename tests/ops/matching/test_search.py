"""Nearest tokens against the plain formula in float64: both sides normalised,
one full product, its argmax.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops import nearest_tokens
from tokenflow_ops.libraries import LibraryError
from tokenflow_ops.matching import search
from tokenflow_ops.matching.search import BLOCK, search_window

from ..made import FAISS, random

BACKENDS = ["torch", pytest.param("faiss", marks=FAISS), "device"]
# Token counts around a block of the search, primes among them.
sizes = st.one_of(
    st.integers(1, 13),
    st.sampled_from([31, BLOCK - 1, BLOCK, BLOCK + 1, 127, 2 * BLOCK, 257, 3 * BLOCK + 1]),
)
seeds = st.integers(0, 2**16)


def similarities(queries: Tensor, targets: Tensor, window: Tensor | None = None) -> Tensor:
    """(m, P, P') cosines in float64, -inf where a match is not allowed."""
    found = F.normalize(queries.double(), dim=-1) @ F.normalize(targets.double(), dim=-1).T
    return found if window is None else found.masked_fill(~window, -torch.inf)


def found_by(
    backend: str,
    queries: Tensor,
    targets: Tensor,
    window: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """`nearest_tokens`, where "device" is what runs off the CPU;
    tile: bytes of products held at once.
    """
    with pytest.MonkeyPatch.context() as patch:
        if tile is not None:
            patch.setattr(search, "CPU_BYTES", tile)
            patch.setattr(search, "DEVICE_BYTES", tile)
        if backend == "device":
            patch.setattr(search, "_search_cpu", search._search_device)
            backend = "torch"
        return nearest_tokens(queries, targets, backend, window)


def assert_closest(found: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    """In few dimensions many tokens point the same way: then the choice is free within rounding."""
    assert found.dtype == torch.int64
    assert found.shape == wanted.shape[:2]
    assert (wanted.gather(-1, found[..., None])[..., 0] >= wanted.amax(-1) - tolerance).all()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 4),
    tokens=sizes,
    others=sizes,
    width=st.integers(1, 40),
    seed=seeds,
    data=st.data(),
)
def test_every_token_finds_its_closest(
    backend: str, frames: int, tokens: int, others: int, width: int, seed: int, data: Any
) -> None:
    dtype = data.draw(
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
    )
    queries, targets = (
        random(seed, frames, tokens, width).to(dtype),
        random(seed + 1, others, width).to(dtype),
    )
    tile = data.draw(st.sampled_from([None, 1, 4 * 7 * BLOCK, 4 * 100 * BLOCK]))
    assert_closest(found_by(backend, queries, targets, tile=tile), similarities(queries, targets))


@pytest.mark.parametrize("backend", ["torch", "device"])
@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 3),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    radius=st.integers(1, 4),
    seed=seeds,
    data=st.data(),
)
def test_a_window_limits_the_search(
    backend: str, frames: int, rows: int, columns: int, radius: int, seed: int, data: Any
) -> None:
    tokens = rows * columns
    queries, targets = random(seed, frames, tokens, 6), random(seed + 1, tokens, 6)
    window = search_window(rows, columns, radius)
    assert window is not None
    for p, q in ((p, q) for p in range(0, tokens, 5) for q in range(tokens)):
        assert window[p, q] == (
            abs(p // columns - q // columns) <= radius and abs(p % columns - q % columns) <= radius
        )
    tile = data.draw(st.sampled_from([None, 1, 4 * 7 * BLOCK, 4 * 100 * BLOCK]))
    assert_closest(
        found_by(backend, queries, targets, window, tile), similarities(queries, targets, window)
    )


def test_no_radius_means_no_window() -> None:
    assert search_window(4, 5, 0) is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "width"), [(5, 33), (8, 8), (65, 320), (257, 641), (300, 1)])
def test_of_equal_tokens_the_first_wins(backend: str, tokens: int, width: int) -> None:
    """Even where a matrix product gives equal columns different last bits,
    as it does for some of these sizes.
    """
    group = torch.randint(
        max(2, tokens // 3), (tokens,), generator=torch.Generator().manual_seed(0)
    )
    targets = random(1, tokens, width)[group]
    if width == 1:
        group = (targets[:, 0] > 0).long()  # one dimension has two directions
    first = torch.stack([(group == value).nonzero()[0, 0] for value in group])
    for queries in (targets[None], 3 * targets.repeat(2, 9, 1)):
        repeats = queries.shape[1] // tokens
        assert torch.equal(found_by(backend, queries, targets), first.repeat(len(queries), repeats))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("others", [1, 5, 70])
def test_zero_vectors_match_the_first_token(backend: str, others: int) -> None:
    targets = random(0, others, 4)
    assert not found_by(backend, torch.zeros(2, 30, 4), targets).any()
    assert not found_by(backend, random(1, 2, 30, 4), torch.zeros(others, 4)).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_length_of_a_token_does_not_matter(backend: str) -> None:
    queries, targets = random(0, 2, 100, 16), random(1, 70, 16)
    scales = 10.0 ** torch.linspace(-18, 18, 100)[:, None]
    wanted = similarities(queries, targets).argmax(-1)
    assert torch.equal(found_by(backend, queries * scales, targets * scales[30:]), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_may_be_views_and_part_of_a_graph(backend: str) -> None:
    queries, targets = (
        random(0, 8, 2, 30).requires_grad_().permute(1, 2, 0),
        random(1, 8, 50).requires_grad_().T,
    )
    assert torch.equal(
        found_by(backend, queries, targets), similarities(queries, targets).argmax(-1)
    )


def test_only_a_tile_of_products_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    multiply = torch.mm

    def watched(left: Tensor, right: Tensor, **options: Any) -> Tensor:
        held.append(4 * len(left) * right.shape[1])
        return multiply(left, right, **options)

    monkeypatch.setattr(torch, "mm", watched)
    nearest_tokens(torch.zeros(9, 1000, 4), random(0, 1000, 4))
    assert max(held) <= search.CPU_BYTES
    assert sum(held) == 4 * 9 * 1000 * 1000


def test_unusable_searches_are_refused(stand_in: Callable[[str, str | None], None]) -> None:
    tokens = random(0, 1, 4, 3)
    with pytest.raises(ValueError, match="'annoy'"):
        nearest_tokens(tokens, tokens[0], "annoy")
    with pytest.raises(ValueError, match="window"):
        nearest_tokens(tokens, tokens[0], "faiss", search_window(2, 2, 1))
    stand_in("faiss", None)
    with pytest.raises(LibraryError, match="FAISS is not installed"):
        nearest_tokens(tokens, tokens[0], "faiss")


@FAISS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_faiss_on_a_gpu_gets_the_tensors_as_they_are_and_gives_its_memory_back(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """With FAISS's own search of tensors on the CPU in place of the one on a GPU."""
    taken: list[Any] = []

    class Resources(SimpleNamespace):
        def setTempMemory(self, size: int) -> None:
            self.scratch = size

        def setPinnedMemory(self, size: int) -> None:
            self.pinned = size

        def __del__(self) -> None:
            taken.append("given back")

    def knn_gpu(
        resources: Resources, queries: Tensor, targets: Tensor, k: int, metric: int, device: int
    ) -> tuple[Any, Tensor]:
        taken.append(
            (
                queries.data_ptr(),
                queries.dtype,
                targets.dtype,
                resources.scratch,
                resources.pinned,
                device,
            )
        )
        return None, (queries.float() @ targets.float().T).topk(k).indices

    faiss: Any = ModuleType("faiss")
    faiss.StandardGpuResources, faiss.knn_gpu, faiss.METRIC_INNER_PRODUCT = Resources, knn_gpu, 0
    monkeypatch.setattr(search, "library", lambda module: faiss)
    queries, targets = random(0, 90, 8).to(dtype), F.normalize(random(1, 40, 8), dim=-1)
    queries[7] = 0
    for _ in range(2):
        found = search._search_faiss_gpu(faiss, queries, targets)
    assert_closest(found[None], similarities(queries[None], targets), 2e-3)
    assert found[7] == 0
    search.release_scratch()
    searches = 2 * [
        (torch.float16 if dtype == torch.float16 else torch.float32,) * 2
        + (search.DEVICE_BYTES, 0, 0)
    ]
    assert [entry[1:] for entry in taken[:2]] == searches
    assert taken[2:] == ["given back"]  # once: both searches shared them
    assert (taken[0][0] == queries.data_ptr()) == (dtype != torch.bfloat16)
