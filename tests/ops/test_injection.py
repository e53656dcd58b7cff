"""Plug-and-Play's share of the steps, and its bad input."""

from __future__ import annotations

import pytest

from tokenflow_ops import Injection


@pytest.mark.parametrize(
    ("share", "steps", "wanted"),
    [(0.5, 50, 25), (0.8, 50, 40), (0.5, 3, 1), (0.0, 10, 0), (1.0, 10, 10), (0.5, 1, 0)],
)
def test_a_share_of_the_steps_from_the_noisy_end(share: float, steps: int, wanted: int) -> None:
    injection = Injection(attention_until=share, features_until=share)
    assert [injection.attention_at(step, steps) for step in range(steps)] == [
        step < wanted for step in range(steps)
    ]
    assert [injection.features_at(step, steps) for step in range(steps)] == [
        step < wanted for step in range(steps)
    ]


def test_the_two_shares_are_apart() -> None:
    injection = Injection()
    assert [
        (injection.attention_at(s, 10), injection.features_at(s, 10)) for s in (4, 5, 7, 8)
    ] == [
        (True, True),
        (False, True),
        (False, True),
        (False, False),
    ]


@pytest.mark.parametrize("name", ["attention_until", "features_until"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_outside_zero_to_one_are_refused(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=name):
        Injection(**{name: share})


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="'encoder'"):
        Injection(layers="encoder")
