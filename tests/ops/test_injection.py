"""Plug-and-Play's share of the steps, and its bad input."""

from __future__ import annotations

import pytest
import torch

from tokenflow_ops import Injection


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
