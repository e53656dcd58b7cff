"""Numbers of weights: near each other where the weights are the same in another type, and read back
as they were written.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tokenflow_ops.storage.signature import Numbers

TYPES = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2


def weight(scale: float, seed: int = 0, size: int = 3000) -> Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def distance(one: Tensor, two: Tensor) -> float:
    return Numbers.of(one).distance(Numbers.of(two))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.02, 1.0, 30.0])
def test_rounding_is_no_distance(scale: float) -> None:
    """At every size, those of which a type holds next to nothing too, and whatever the rounded
    weights are held in.
    """
    for seed in range(20):
        kinds = [weight(scale, seed).to(kind) for kind in TYPES]
        kinds += [weight(scale, seed).to(kind).float() for kind in TYPES] + [
            weight(scale, seed).half().to(kind) for kind in TYPES
        ]
        assert max(distance(one, two) for one, two in itertools.product(kinds, kinds)) < 0.6


def test_a_change_beyond_rounding_is_a_distance() -> None:
    for kind, change in (
        (torch.float32, 1e-3),
        (torch.float16, 0.01),
        (torch.bfloat16, 0.05),
        (torch.float8_e4m3fn, 0.5),
    ):
        one = weight(1.0).to(kind)
        assert distance(one, (one.float() * (1 + change)).to(kind)) > 1
    assert distance(weight(1.0), weight(1.0, seed=1)) > 1000


def test_sums_are_as_far_off_as_their_parts_together() -> None:
    exact = Numbers.of(weight(1.0)).times(0.3).plus(Numbers.of(weight(1.0, 1)).times(0.7))
    for kind in TYPES:
        rounded = (
            Numbers.of(weight(1.0).to(kind))
            .times(0.3)
            .plus(Numbers.of(weight(1.0, 1).to(kind)).times(0.7))
        )
        assert rounded.distance(exact) < 0.6
        assert rounded.distance(Numbers.of(weight(1.0))) > 1
    assert (
        Numbers.of(weight(1.0))
        .times(0)
        .plus(Numbers.of(weight(1.0, 1)))
        .distance(Numbers.of(weight(1.0, 1)))
        == 0
    )


def test_what_cannot_be_read_is_near_everything() -> None:
    for unknown in (
        Numbers.unknown(),
        Numbers.of(torch.full((5,), torch.nan)),
        Numbers.of(torch.zeros(0)),
        Numbers.unknown().times(0.5),
    ):
        assert unknown.distance(Numbers.of(weight(1.0))) == 0
    assert Numbers.joined([Numbers.unknown(), Numbers.of(weight(1.0))]).distance(
        Numbers.of(weight(1.0))
    ) == float("inf")


def test_numbers_are_written_and_read() -> None:
    wanted = Numbers.joined(
        [
            Numbers.unknown(),
            *(
                Numbers.of(weight(scale).to(kind))
                for scale in (1e-30, 1.0, 1e30)
                for kind in TYPES[:3]
            ),
        ]
    )
    found = Numbers.from_text(wanted.to_text())
    assert found.distance(wanted) == 0
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.steps, wanted.steps)
    for text in ("", "A", "AAAA", "!", "ä", wanted.to_text()[:-4]):
        with pytest.raises(ValueError, match=r"."):
            Numbers.from_text(text)
