"""Matches of frames to their keyframes against the plain loop over tokens in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops import match_frames, neighbours
from tokenflow_ops.search import load_faiss

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
