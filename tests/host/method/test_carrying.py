"""When TokenFlow carries denoised frames along the matches, and when it leaves them alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures

from ..helpers import FRAMES, SIZE, call, edit, invert, matched, moving_clip, tiny_model


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


def test_an_inversion_of_some_depth_has_that_share_behind_it(carried: list[Any]) -> None:
    inversion = invert(tiny_model(), moving_clip(FRAMES, *SIZE), depth=0.67)[0]
    features = call(ExtractFeatures.execute, tiny_model(), inversion, storage="memory")[0]
    found = call(BuildCorrespondences.execute, features, keyframe_interval=2, backend="torch")[0]
    edit(correspondences=found, carry_until=0.34)
    assert carried == []
    edit(correspondences=found, carry_until=0.7)
    assert steps_of(found, carried) == [0]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "tokenflow"])
def test_other_modes_carry_nothing(carried: list[Any], mode: str) -> None:
    edit(consistency=mode, carry_until=1.0)
    assert carried == []
