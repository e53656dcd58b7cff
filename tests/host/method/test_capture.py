"""Features are handed over pass by pass: those of a whole clip may be more than memory holds."""

from __future__ import annotations

import pytest
import torch
from tokenflow_pack.host.source import capture_features
from tokenflow_pack.host.validation.errors import NodeError
from torch import Tensor

from ..helpers import FRAMES, inverted, tiny_model, watched

NAME = "output_blocks.9.1.transformer_blocks.0.attn1"


def captured(frames_per_pass: int) -> list[tuple[int, int, int, Tensor]]:
    """Step, first frame, frames in all and features, in the order they came."""
    seen: list[tuple[int, int, int, Tensor]] = []

    def consume(step: int, found: dict[str, Tensor], first: int, total: int) -> None:
        seen.append((step, first, total, found[NAME]))

    with torch.inference_mode():
        inversion = inverted()[0]
        capture_features(
            "a node",
            tiny_model(),
            inversion,
            [NAME],
            [0, 2],
            consume,
            frames_per_pass=frames_per_pass,
        )
    return seen


@pytest.mark.parametrize("size", [1, 2, 3])
def test_they_come_in_order_as_each_pass_has_run(size: int) -> None:
    whole, parts = captured(FRAMES), captured(size)
    starts = list(range(0, FRAMES, size))
    assert [(step, first) for step, first, _, _ in parts] == [
        (step, first) for step in (0, 2) for first in starts
    ]
    assert {total for _, _, total, _ in parts} == {FRAMES}
    for step, _, _, features in whole:
        joined = torch.cat([part for own, _, _, part in parts if own == step])
        torch.testing.assert_close(joined, features, rtol=1e-4, atol=1e-5)


def test_a_pass_that_cannot_be_kept_ends_the_run() -> None:
    calls: list[int] = []

    def count(_: object) -> None:
        calls.append(1)

    def consume(*_: object) -> None:
        raise NodeError("a node", "storage", "the disk is full.", "Make room.")

    with torch.inference_mode():
        inversion, model = inverted()[0], watched(tiny_model(), count)
        with pytest.raises(NodeError, match="full"):
            capture_features("a node", model, inversion, [NAME], [0], consume, frames_per_pass=1)
    assert len(calls) == 1
