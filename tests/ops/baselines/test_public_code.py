"""The public code's choice of keyframes, weights and matches, against its rules written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflow_ops import neighbours
from tokenflow_ops.baselines.public_code import chunk_neighbours, match_to_keyframes
from tokenflow_ops.matching.build import BLENDS, blend_of


@given(frames=st.integers(1, 60), interval=st.integers(1, 20))
def test_own_and_previous_chunk_by_the_distances_to_their_centres(
    frames: int, interval: int
) -> None:
    near = chunk_neighbours(frames, interval)
    for frame in range(frames):
        own = frame // interval
        assert int(near.future[frame]) == own
        assert int(near.past[frame]) == max(0, own - 1)
        if own == 0:
            assert float(near.weight[frame]) == 1
            continue
        d1 = abs(frame - (own * interval + interval // 2))
        d2 = abs(frame - ((own - 1) * interval + interval // 2))
        assert float(near.weight[frame]) == pytest.approx(1 / (1 + math.exp(-d2 / (d1 + d2))))


def test_chunks_may_be_uneven() -> None:
    near = chunk_neighbours(14, 4, torch.tensor([0, 4, 12]))
    assert near.future.tolist() == [0] * 4 + [1] * 8 + [2] * 2
    assert near.past.tolist() == [0] * 12 + [1] * 2
    # Centres 2, 8 and, as of a whole chunk, 14.
    found = near.weight[[4, 7, 12, 13]]
    wanted = [2 / (4 + 2), 5 / (1 + 5), 4 / (2 + 4), 5 / (1 + 5)]
    assert torch.allclose(found, torch.sigmoid(torch.tensor(wanted)))


def test_an_interval_of_eight_has_the_published_weights() -> None:
    weights = chunk_neighbours(40, 8).weight[8:]
    assert round(float(weights.min()), 2) == 0.62
    assert round(float(weights.max()), 2) == 0.73


def test_the_papers_weights_lie_between_a_half_and_the_sigmoid_of_one() -> None:
    keyframes = torch.tensor([2, 6])
    near = blend_of(BLENDS[1], 8, keyframes, 4)
    assert near.weight[:3].tolist() == [*near.weight[6:].tolist(), 1.0] == [1.0, 1.0, 1.0]
    assert torch.allclose(near.weight[3:6], torch.sigmoid(torch.tensor([0.25, 0.5, 0.75])))
    assert torch.equal(near.past, neighbours(8, keyframes).past)


def test_an_unknown_blend_is_named() -> None:
    with pytest.raises(ValueError, match="'mine'"):
        blend_of("mine", 4, torch.tensor([1]), 4)


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (5, 7), (3, 13)])
def test_every_token_finds_the_closest_of_both_keyframes(frames: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    features = torch.randn(frames, tokens, 6, generator=generator)
    keyframes = torch.randn(3, tokens, 6, generator=generator)
    past, future = torch.arange(frames) % 3, torch.arange(frames) // 2 % 3
    for side, found in zip(
        (past, future), match_to_keyframes(features, keyframes, past, future), strict=True
    ):
        for frame in range(frames):
            similarity = torch.nn.functional.cosine_similarity(
                features[frame][:, None], keyframes[side[frame]][None], dim=-1
            )
            assert torch.equal(found[frame], similarity.argmax(-1))
