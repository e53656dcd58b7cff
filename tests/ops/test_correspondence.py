"""Nearest tokens and matches of frames against the plain loop over tokens in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops import match_frames, nearest_tokens, neighbours
from tokenflow_ops.search import faster_backend, load_faiss, search_window

BACKENDS = ["torch", pytest.param("faiss", marks=pytest.mark.skipif(load_faiss() is None, reason="FAISS is not installed"))]
sizes = st.integers(1, 13)
seeds = st.integers(0, 2**16)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def plain_similarities(query: Tensor, targets: Tensor) -> list[float]:
    return [cosine(query, target) for target in targets]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=30)
@given(frames=st.integers(1, 4), tokens=sizes, others=sizes, width=st.integers(1, 9), seed=seeds)
def test_every_token_finds_its_closest(backend: str, frames: int, tokens: int, others: int, width: int, seed: int) -> None:
    queries, targets = random(seed, frames, tokens, width), random(seed + 1, others, width)
    found = nearest_tokens(queries, targets, backend)
    assert found.shape == (frames, tokens)
    for f in range(frames):
        for p in range(tokens):
            similarities = plain_similarities(queries[f, p], targets)
            # In few dimensions many tokens point the same way: then the choice is free within rounding.
            assert similarities[found[f, p]] >= max(similarities) - 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_and_half_precision_features_are_matched(backend: str) -> None:
    targets = random(0, 257, 16).half()
    order = torch.randperm(257, generator=torch.Generator().manual_seed(1))
    assert torch.equal(nearest_tokens(targets[order][None] * 3, targets, backend)[0], order)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equal_tokens_the_first_wins(backend: str) -> None:
    targets = random(0, 5, 8)[[0, 1, 2, 1, 0, 3, 4, 3]]
    assert nearest_tokens(targets[None], targets, backend)[0].tolist() == [0, 1, 2, 1, 0, 5, 6, 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_match_the_first_token(backend: str) -> None:
    assert nearest_tokens(torch.zeros(1, 3, 4), random(0, 5, 4), backend).tolist() == [[0, 0, 0]]


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), radius=st.integers(1, 4), seed=seeds)
def test_a_window_limits_the_search(rows: int, columns: int, radius: int, seed: int) -> None:
    tokens = rows * columns
    queries, targets = random(seed, 1, tokens, 6), random(seed + 1, tokens, 6)
    found = nearest_tokens(queries, targets, "torch", search_window(rows, columns, radius))[0]
    for p in range(tokens):
        inside = [q for q in range(tokens) if abs(p // columns - q // columns) <= radius and abs(p % columns - q % columns) <= radius]
        similarities = plain_similarities(queries[0, p], targets)
        assert int(found[p]) in inside
        assert similarities[found[p]] >= max(similarities[q] for q in inside) - 1e-5


def test_no_radius_means_no_window() -> None:
    assert search_window(4, 5, 0) is None


def test_unusable_searches_are_refused() -> None:
    tokens = random(0, 1, 4, 3)
    with pytest.raises(ValueError, match="'annoy'"):
        nearest_tokens(tokens, tokens[0], "annoy")
    with pytest.raises(ValueError, match="window"):
        nearest_tokens(tokens, tokens[0], "faiss", search_window(2, 2, 1))


def test_the_faster_backend_is_one_of_them() -> None:
    assert faster_backend(random(0, 2, 16, 4), random(1, 16, 4)) in ("torch", "faiss")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=30)
@given(data=st.data(), frames=st.sampled_from([1, 2, 3, 5, 7, 11]), tokens=sizes, seed=seeds)
def test_frames_are_matched_to_both_neighbours(backend: str, data: st.DataObject, frames: int, tokens: int, seed: int) -> None:
    features = random(seed, frames, tokens, 8)
    chosen = data.draw(st.sets(st.integers(0, frames - 1), min_size=1))
    keyframes = torch.tensor(sorted(chosen))
    near = neighbours(frames, keyframes)
    for matches, side in zip(match_frames(features, keyframes, near, backend), (near.past, near.future), strict=True):
        assert matches.shape == (frames, tokens)
        assert matches.dtype == torch.int16
        for i in range(frames):
            keyframe = int(keyframes[side[i]])
            for p in range(tokens):
                similarities = plain_similarities(features[i, p], features[keyframe])
                assert similarities[matches[i, p]] >= max(similarities) - 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_keyframe_maps_onto_itself_even_with_equal_tokens(backend: str) -> None:
    features = torch.ones(3, 6, 4)
    keyframes = torch.tensor([0, 2])
    past, future = match_frames(features, keyframes, neighbours(3, keyframes), backend)
    for keyframe in (0, 2):
        assert past[keyframe].tolist() == future[keyframe].tolist() == list(range(6))


def test_many_tokens_need_wider_indices() -> None:
    features = torch.ones(1, 2**15, 1)
    past, _ = match_frames(features, torch.tensor([0]), neighbours(1, torch.tensor([0])))
    assert past.dtype == torch.int32
    assert int(past[0, -1]) == 2**15 - 1
