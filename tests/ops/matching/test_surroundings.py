"""Tokens described by what is around them."""

from __future__ import annotations

import pytest
import torch

from tokenflow_ops.matching.surroundings import CHANNELS, with_surroundings


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (7, 7), (4, 16)])
@pytest.mark.parametrize("channels", [8, CHANNELS, 200])
def test_descriptions_are_of_unit_length_and_finite(grid: tuple[int, int], channels: int) -> None:
    features = torch.randn(2, grid[0] * grid[1], channels)
    described = with_surroundings(features, grid)
    assert described.shape[:2] == features.shape[:2]
    assert torch.isfinite(described).all()
    lengths = described.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5) or grid == (1, 1)


def test_a_channel_that_drowns_the_others_is_standardised() -> None:
    features = torch.randn(2, 48, 32)
    massive = features.clone()
    massive[..., 3] = 1000 * massive[..., 3] + 5000
    assert torch.allclose(
        with_surroundings(massive, (6, 8)), with_surroundings(features, (6, 8)), atol=1e-3
    )


def test_what_moved_is_found_by_its_surroundings() -> None:
    """Every second token looks the same; its neighbours do not."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(1, 64, 8, 10, generator=generator)
    plane[..., ::2, ::2] = plane[..., :1, :1]
    frames = torch.cat([plane[..., :8], plane[..., 2:]])
    described = with_surroundings(frames.flatten(2).transpose(1, 2), (8, 8))
    found = (described[0] @ described[1].T).argmax(1).unflatten(0, (8, 8))
    wanted = torch.arange(64).unflatten(0, (8, 8))
    inside = found[1:-1, 3:-1] == wanted[1:-1, 1:-3]
    assert inside.float().mean() > 0.95


def test_of_tokens_that_look_alike_the_nearer_one_is_taken() -> None:
    features = torch.randn(1, 1, 16).expand(1, 36, 16)
    described = with_surroundings(features, (6, 6))
    distance = (described[0] @ described[0].T)[0].unflatten(0, (6, 6))
    assert distance[0, 0] > distance[0, 3] > distance[0, 5]
