"""One input that sets others: what presets choose, and that the user's own choice is stronger."""

from __future__ import annotations

import logging
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from hypothesis import given
from hypothesis import strategies as st
from tokenflow_pack.host.editing import edit_run
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.presets import BY_PRESET, NUMBER_BY_PRESET, Preset
from tokenflow_pack.tokenflow_ops import ATTENTION, DEEP_FEATURES
from tokenflow_pack.tokenflow_ops.passes import KeyframePass, PropagationPass
from torch import Tensor

from ..helpers import (
    FRAMES,
    NEGATIVE,
    POSITIVE,
    applied,
    built,
    call,
    edit,
    injection,
    invert,
    inverted,
    relative_error,
    tiny_model,
    watch,
    watched,
)
from ..once import once_a_module
from ..tiny_models import moving_clip

ROUNDING = 1e-4


@once_a_module
def preset(name: str) -> Tensor:
    return edit(preset=name, injection=injection(), cfg=4.0)


def test_faithful_is_the_inputs_it_stands_for() -> None:
    chosen = {"propagation": ATTENTION, "carry_until": 0.0, "injection": injection(), "cfg": 4.0}
    for name in ("faithful", "balanced"):
        assert torch.equal(edit(preset=name, **chosen), preset("faithful"))
    assert relative_error(preset("balanced"), preset("faithful")) > 10 * ROUNDING


def test_balanced_is_the_inputs_it_stands_for_and_the_keyframes_guidance() -> None:
    chosen = {"propagation": DEEP_FEATURES, "carry_until": 0.2, "injection": injection()}
    assert torch.equal(edit(**chosen, cfg=4.0), preset("balanced"))
    own_guidance = edit(preset="faithful", **chosen, cfg=4.0)
    assert relative_error(own_guidance, preset("balanced")) > 1e-5
    alone = edit(preset="faithful", **chosen, cfg=1.0)
    assert torch.equal(edit(**chosen, cfg=1.0), alone), "there is none to carry"


def test_without_a_choice_it_is_balanced() -> None:
    assert torch.equal(edit(injection=injection(), cfg=4.0), preset("balanced"))


@pytest.mark.parametrize("name", ["fast", "draft"])
def test_fewer_steps_are_the_hosts_sampling_of_these_noise_levels(name: str) -> None:
    _, noisy, sigmas = inverted()
    # Half and a quarter of three steps.
    levels = sigmas[[0, 2, 3]] if name == "fast" else sigmas[[0, 3]]
    sampler = comfy.samplers.sampler_object("euler")
    model = applied(preset=name, injection=injection())
    by_host = call(
        SamplerCustom.execute, model, False, 0, 4.0, POSITIVE, NEGATIVE, sampler, levels, noisy
    )[0]["samples"]
    assert len(by_host) == FRAMES
    assert relative_error(preset(name), by_host) < ROUNDING


@pytest.mark.parametrize(("sampler", "jointly"), [("euler", 2), ("heun", 3)])
def test_lean_edits_keyframes_at_every_second_step(
    sampler: str, jointly: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At two of three steps, the first of which heun evaluates twice."""
    seen: list[tuple[type, int]] = []
    watch(monkeypatch, lambda _, work: seen.append((type(work), len(work.frames))))
    asked: list[int] = []
    model = watched(tiny_model(), lambda args: asked.append(len(args["cond_or_uncond"])))
    edit(model, preset="lean", carry_until=0.0, sampler_name=sampler, cfg=4.0)
    assert [kind for kind, _ in seen].count(KeyframePass) == jointly
    frames = [count for kind, count in seen if kind is PropagationPass]
    # In between all frames take what the keyframes have left, also these.
    assert FRAMES in frames
    assert min(frames) < FRAMES
    # Only keyframes are asked with both prompts.
    assert asked.count(2) == jointly
    assert asked.count(1) == len(frames)


@once_a_module
def many_steps() -> Any:
    """Matches of a clip inverted in as many steps as lie close, of which the last ones are left."""
    model = tiny_model()
    inversion = invert(model, moving_clip(2, 8, 8), steps=40, depth=0.6, refinement="none")[0]
    return built(call(ExtractFeatures.execute, model, inversion, storage="memory")[0])


@pytest.mark.parametrize(
    ("chosen", "jointly"),
    [({}, 24 - 4), ({"preset": "lean"}, 24 - 12), ({"preset": "fast"}, 12), ({"start": 0.5}, 12)],
    ids=["balanced", "lean", "fast: too far apart", "after six tenths"],
)
def test_close_steps_before_the_last_details_take_what_keyframes_have_left(
    chosen: dict[str, Any], jointly: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of forty steps the seventeenth to the twenty-fourth, every second one; the run has these."""
    seen: list[type] = []
    watch(monkeypatch, lambda _, work: seen.append(type(work)))
    edit(correspondences=many_steps(), propagation=DEEP_FEATURES, carry_until=0.0, **chosen)
    assert seen.count(KeyframePass) == jointly


@pytest.mark.parametrize("chosen", [{"preset": "faithful"}, {"propagation": ATTENTION}], ids=str)
def test_the_papers_way_edits_keyframes_at_every_step(
    chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[type] = []
    watch(monkeypatch, lambda _, work: seen.append(type(work)))
    edit(correspondences=many_steps(), carry_until=0.0, **chosen)
    assert seen.count(KeyframePass) == 24


def test_what_would_fill_main_memory_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a clip whose keyframes are edited in several windows; then they run at every step."""
    inputs = {"carry_until": 0.0, "attended_keyframes": 1, "cfg": 4.0}
    every, lean = edit(**inputs), edit(preset="lean", **inputs)
    assert relative_error(lean, every) > 1e-3
    asked: list[int] = []
    monkeypatch.setattr(edit_run, "fits_in_memory", lambda size: bool(asked.append(size)))
    with caplog.at_level(logging.INFO):
        assert torch.equal(edit(preset="lean", **inputs), every)
    assert min(asked) > 0
    assert caplog.text.count("keyframes run at every step") == 1
    asked.clear()
    edit(preset="lean", carry_until=0.0)
    assert not asked, "one window's stay on the device"


def test_lean_without_guidance_has_none_to_carry() -> None:
    """With cfg 1 the negative prompt is not asked for."""
    inputs = {"propagation": ATTENTION, "carry_until": 1.0, "cfg": 1.0}
    assert torch.equal(edit(preset="lean", **inputs), edit(**inputs))


@given(steps=st.integers(1, 1000), share=st.floats(0.01, 1))
def test_a_share_of_the_steps_begins_and_ends_with_the_schedule(steps: int, share: float) -> None:
    levels = torch.arange(steps, -1, -1, dtype=torch.float64)
    taken = Preset(DEEP_FEATURES, 0.0, share).sigmas(levels)
    assert (float(taken[0]), float(taken[-1])) == (steps, 0)
    assert len(taken) - 1 == max(1, round(share * steps))
    assert (taken.diff() < 0).all()
    assert torch.equal(Preset(DEEP_FEATURES, 0.0).sigmas(levels), levels)


def test_what_the_user_chooses_is_stronger() -> None:
    found = Preset(DEEP_FEATURES, 0.2, 0.5)
    assert found.but(BY_PRESET, NUMBER_BY_PRESET, NUMBER_BY_PRESET) == found
    assert found.but(BY_PRESET, NUMBER_BY_PRESET, 0) == found  # as older workflows have it
    assert found.but(ATTENTION, 0.0, 3) == Preset(ATTENTION, 0.0, 0.5, 3)
