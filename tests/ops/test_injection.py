"""Plug-and-Play's share of the steps, and its bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenflow_ops import Injection
from tokenflow_ops.backbone import Backbone
from tokenflow_ops.injection import EVERY_RESOLUTION, ONE_BLOCK


def schedule(steps: int) -> list[float]:
    """Noise over signal at so many steps of DDIM on SD's own schedule, by diffusers' rules."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    times = [1 + (steps - 1 - i) * (1000 // steps) for i in range(steps)]
    return [float(((1 - kept[t]) / kept[t]) ** 0.5) for t in times]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("steps", [10, 20, 50, 100])
def test_on_the_authors_schedule_a_share_is_one_of_the_steps(share: float, steps: int) -> None:
    injection = Injection(attention_until=share, features_until=share)
    wanted = [step < share * steps for step in range(steps)]
    assert [injection.attention_at(noise) for noise in schedule(steps)] == wanted
    assert [injection.features_at(noise) for noise in schedule(steps)] == wanted


def test_with_any_other_steps_it_is_the_same_noise() -> None:
    first, last = (
        schedule(50)[i] for i in (24, 25)
    )  # half of the authors' steps end between these
    injection = Injection()
    assert injection.attention_at(first)
    assert not injection.attention_at(last)
    assert injection.attention_at(1e4)  # zero terminal SNR
    assert injection.features_at(last)
    assert not injection.features_at(0.02)


def test_levels_below_the_schedules_last_are_within_the_whole_of_it_alone() -> None:
    assert Injection(attention_until=1.0).attention_at(1e-3)
    assert not Injection(attention_until=0.99).attention_at(1e-3)


@pytest.mark.parametrize("name", ["attention_until", "features_until"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_outside_zero_to_one_are_refused(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=name):
        Injection(**{name: share})


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="'encoder'"):
        Injection(layers="encoder")


def test_unknown_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="'all'"):
        Injection(features_in="all")


def sd15(first: int, last: int, deep: tuple[str, ...]) -> tuple[Backbone, dict[str, Any]]:
    """Output blocks with self-attention, three of a resolution, and tokens and widths."""
    blocks = range(first, last)
    layers = {block: f"output_blocks.{block}.1.attn1" for block in blocks}
    hidden = {layer: f"output_blocks.{block}.0.out_layers" for block, layer in layers.items()}
    shapes = {layer: (64 * 4 ** (block // 3), 8) for block, layer in layers.items()}
    decoder = tuple((layer,) for layer in layers.values())
    return Backbone(tuple(layers.values()), decoder, hidden=hidden, deep=deep), shapes


DEEP = tuple(f"output_blocks.{block}.{part}" for block in range(9) for part in range(3))


@pytest.mark.parametrize(
    ("blocks", "deep", "wanted"),
    [((3, 12), DEEP, [4, 7]), ((0, 6), DEEP, [1, 4]), ((3, 12), (), [4]), ((5, 6), DEEP, [])],
    ids=["SD 1.5", "SDXL", "nothing below full resolution", "one block"],
)
def test_features_come_from_the_papers_block_and_the_middle_of_finer_ones(
    blocks: tuple[int, int], deep: tuple[str, ...], wanted: list[int]
) -> None:
    backbone, shapes = sd15(*blocks, deep)
    paths = tuple(f"output_blocks.{block}.0.out_layers" for block in wanted)
    assert backbone.hidden_layers(shapes, EVERY_RESOLUTION) == paths
    assert backbone.hidden_layers(shapes, ONE_BLOCK) == paths[:1]
    assert all(backbone.beside(path) in shapes for path in paths)
