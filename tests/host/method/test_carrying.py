"""When TokenFlow carries denoised frames along the matches, and when it leaves them alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.features import ExtractFeatures

from ..helpers import FRAMES, SIZE, built, call, edit, invert, matched, moving_clip, tiny_model


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The matches along which denoised frames are carried, one for each time."""
    seen: list[Any] = []
    carry = MODES["tokenflow"].after_guidance

    def watched(run: Any, now: Any, denoised: Any) -> Any:
        settled = carry(run, now, denoised)
        if settled is not denoised:
            seen.append(now.matches)
        return settled

    monkeypatch.setitem(MODES, "tokenflow", replace(MODES["tokenflow"], after_guidance=watched))
    return seen


def steps_of(correspondences: Any, carried: list[Any]) -> list[int]:
    return [
        i
        for i, step in enumerate(correspondences.steps)
        if any(step is matches for matches in carried)
    ]


@pytest.mark.parametrize(
    ("until", "steps"), [(0.0, []), (0.1, [0]), (0.3, [0]), (0.7, [0, 1]), (1.0, [0, 1, 2])]
)
def test_the_first_share_of_the_schedule_is_carried(
    carried: list[Any], until: float, steps: list[int]
) -> None:
    edit(carry_until=until)
    assert steps_of(matched(), carried) == steps


def test_a_start_further_down_the_noise_has_that_share_behind_it(carried: list[Any]) -> None:
    edit(carry_until=0.7, start=0.34)
    assert carried == []
    edit(carry_until=0.7, start=0.67)
    assert steps_of(matched(), carried) == [1]


def matched_anew(**schedule: Any) -> Any:
    """The clip's matches after an inversion of another schedule."""
    inversion = invert(tiny_model(), moving_clip(FRAMES, *SIZE), **schedule)[0]
    features = call(ExtractFeatures.execute, tiny_model(), inversion, storage="memory")[0]
    return built(features)


def test_a_share_is_of_the_noise_and_not_of_the_steps(carried: list[Any]) -> None:
    """The second of three steps begins at a noise of 1.6, or with karras at 1.3."""
    edit(carry_until=0.53)
    assert steps_of(matched(), carried) == [0, 1]
    carried.clear()
    found = matched_anew(scheduler="karras")
    edit(correspondences=found, carry_until=0.53)
    assert steps_of(found, carried) == [0]


def test_the_only_step_carries_nothing_unless_all_of_them_do(carried: list[Any]) -> None:
    found = matched_anew(steps=1)
    edit(correspondences=found, carry_until=0.9)
    assert carried == []
    edit(correspondences=found, carry_until=1.0)
    assert steps_of(found, carried) == [0]


def test_an_inversion_of_some_depth_has_that_share_behind_it(carried: list[Any]) -> None:
    found = matched_anew(depth=0.67)
    edit(correspondences=found, carry_until=0.34)
    assert carried == []
    edit(correspondences=found, carry_until=0.7)
    assert steps_of(found, carried) == [0]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "tokenflow"])
def test_other_modes_carry_nothing(carried: list[Any], mode: str) -> None:
    edit(consistency=mode, carry_until=1.0)
    assert carried == []
