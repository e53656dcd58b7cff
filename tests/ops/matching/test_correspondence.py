"""Matches of frames to their keyframes against the plain loop over tokens in float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops import SourceFeatures, nearest_tokens, neighbours
from tokenflow_ops.matching.build import build_correspondences

from ..made import FAISS, ONLY, random, source_of, step_matches

BACKENDS = ["torch", pytest.param("faiss", marks=FAISS)]
sizes = st.integers(1, 13)
seeds = st.integers(0, 2**16)
CLIPS = given(
    frames=st.sampled_from([1, 2, 3, 5, 7, 11]),
    interval=st.integers(1, 5),
    tokens=sizes,
    seed=seeds,
)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def plain_similarities(query: Tensor, targets: Tensor) -> list[float]:
    return [cosine(query, target) for target in targets]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=30)
@CLIPS
def test_frames_are_matched_to_both_neighbours(
    backend: str, frames: int, interval: int, tokens: int, seed: int
) -> None:
    features = random(seed, frames, tokens, 8)
    found = step_matches(features, interval, seed, backend=backend)
    near = neighbours(frames, found.keyframes)
    for matches, side in zip(found.tokens(ONLY), (near.past, near.future), strict=True):
        assert matches.shape == (frames, tokens)
        assert matches.dtype == torch.int16
        for i in range(frames):
            keyframe = int(found.keyframes[side[i]])
            for p in range(tokens):
                similarities = plain_similarities(features[i, p], features[keyframe])
                assert similarities[matches[i, p]] >= max(similarities) - 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_keyframe_maps_onto_itself_even_with_equal_tokens(backend: str) -> None:
    found = step_matches(torch.ones(3, 6, 4), 2, backend=backend)
    for side in found.tokens(ONLY, found.keyframes):
        assert side.tolist() == [list(range(6))] * 2


def test_many_tokens_need_wider_indices() -> None:
    past, _ = step_matches(torch.ones(1, 2**15, 1), 1).tokens(ONLY)
    assert past.dtype == torch.int32
    assert int(past[0, -1]) == 2**15 - 1


@pytest.mark.parametrize("interval", [1, 3, 8, 200])
def test_a_long_clip_is_matched_in_blocks_as_at_once(
    interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = random(0, 151, 3, 8)
    held: list[int] = []
    stream = SourceFeatures.stream

    def watched(self: SourceFeatures, frames: Tensor, consume: Any) -> None:
        held.append(len(frames))
        stream(self, frames, consume)

    monkeypatch.setattr(SourceFeatures, "stream", watched)
    found = step_matches(features, interval)
    assert sum(held) >= 151
    assert max(held) <= max(64, interval) + 4 * interval
    for side, keyframes in zip(
        found.tokens(ONLY), (found.near.past, found.near.future), strict=True
    ):
        for i in range(151):
            keyframe = int(found.keyframes[keyframes[i]])
            own = (
                torch.arange(3)
                if keyframe == i
                else nearest_tokens(features[i][None], features[keyframe])[0]
            )
            assert torch.equal(side[i].long(), own)


def test_matches_that_nobody_asked_for_are_missing() -> None:
    found = step_matches(random(0, 9, 3, 8), 3)
    with pytest.raises(KeyError, match="without matches"):
        found.pairs.rows(torch.tensor([0]), torch.tensor([8]))


@settings(deadline=None, max_examples=30)
@CLIPS
def test_a_token_follows_the_keyframe_that_it_is_likelier_in(
    frames: int, interval: int, tokens: int, seed: int
) -> None:
    features = random(seed, frames, tokens, 8)
    found = step_matches(features, interval, seed)
    plain = step_matches(features, interval, seed, blend="nearest")
    assert torch.equal(plain.weight(ONLY), plain.near.weight)
    past, future = found.tokens(ONLY)
    weights = found.weight(ONLY)
    for i in range(frames):
        share = float(found.near.weight[i])
        before, after = (
            features[int(found.keyframes[side[i]])] for side in (found.near.past, found.near.future)
        )
        for p in range(tokens):
            earlier = cosine(features[i, p], before[past[i, p]])
            later = cosine(features[i, p], after[future[i, p]])
            odds = share * math.exp(later / 0.05), (1 - share) * math.exp(earlier / 0.05)
            assert weights[i, p] == pytest.approx(odds[0] / sum(odds), abs=1e-4)


def test_what_one_keyframe_does_not_show_comes_from_the_other() -> None:
    """A third token that only the last frame and the one before it have."""
    there, absent = torch.eye(3), torch.eye(3)[[0, 1, 1]]
    features = torch.stack([absent, absent, there, there])
    found = build_correspondences(source_of(features), given=[0, 3], backend="torch").steps[0]
    weights = found.weight(ONLY)
    assert weights[2, 2] > 0.999
    assert weights[2, :2].tolist() == pytest.approx([2 / 3] * 2)
    assert weights[1].tolist() == pytest.approx([1 / 3] * 3)
