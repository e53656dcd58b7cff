"""Sampling cut into parts, with the noise that is left handed on: together they are the whole, to
rounding, as the plain host's are.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom, SplitSigmas
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from torch import Tensor

import nodes

from ..helpers import NEGATIVE, POSITIVE, built, call, injection, invert, relative_error, watch
from ..once import once_a_module
from ..small import applied, edit, tiny_model
from ..tiny_models import moving_clip

# All shares end at a step of their own: 0.1, 0.2, 0.5, 0.7 and 0.8 of the modes,
# of carrying and of Plug-and-Play.
STEPS = 10
FRAMES = 3
SIZE = 8, 8
CFG = 4.0
ROUNDING = 1e-5


@once_a_module
def inverted(depth: float = 1.0) -> tuple[Any, ...]:
    return invert(
        tiny_model(), moving_clip(FRAMES, *SIZE), steps=STEPS, refinement="none", depth=depth
    )


@once_a_module
def matched(depth: float = 1.0) -> Any:
    features = call(
        ExtractFeatures.execute,
        tiny_model(),
        inverted(depth)[0],
        "one per resolution",
        "one noise level",
        storage="memory",
    )[0]
    return built(features)


@once_a_module
def patched(mode: str, depth: float = 1.0) -> Any:
    return applied(correspondences=matched(depth), consistency=mode, injection=injection())


def by_sigmas(
    model: Any, cuts: tuple[int, ...] = (), sampler: str = "euler", depth: float = 1.0
) -> Tensor:
    """SplitSigmas, and a SamplerCustom for each part."""
    _, latents, rest = inverted(depth)
    parts = []
    for cut, before in zip(cuts, (0, *cuts), strict=False):
        part, rest = call(SplitSigmas.execute, rest, cut - before)
        parts.append(part)
    for sigmas in (*parts, rest):
        chosen = comfy.samplers.sampler_object(sampler)
        latents = call(
            SamplerCustom.execute, model, False, 0, CFG, POSITIVE, NEGATIVE, chosen, sigmas, latents
        )[0]
    return latents["samples"]


def by_steps(model: Any, cuts: tuple[int, ...] = (), sampler: str = "euler") -> Tensor:
    """KSampler (Advanced) with start and end steps."""
    latents = inverted()[1]
    for first, last in zip((0, *cuts), (*cuts, STEPS), strict=True):
        leftover = "disable" if last == STEPS else "enable"
        arguments = (
            "disable",
            0,
            STEPS,
            CFG,
            sampler,
            "normal",
            POSITIVE,
            NEGATIVE,
            latents,
            first,
            last,
            leftover,
        )
        latents = call(nodes.KSamplerAdvanced().sample, model, *arguments)[0]
    return latents["samples"]


@once_a_module
def whole(mode: str) -> Tensor:
    return by_sigmas(patched(mode))


@pytest.mark.parametrize("mode", MODES)
def test_the_parts_are_the_whole(mode: str) -> None:
    assert relative_error(by_sigmas(patched(mode), (3, 5, 8)), whole(mode)) < ROUNDING


@pytest.mark.parametrize("mode", ["tokenflow", "rerender", "fatezero"])
def test_so_they_are_with_first_and_last_steps(mode: str) -> None:
    assert relative_error(by_steps(patched(mode), (5, 8)), whole(mode)) < ROUNDING


@pytest.mark.parametrize(("sampler", "by"), [("heun", by_sigmas), ("dpm_2", by_steps)])
def test_so_they_are_with_samplers_that_look_off_the_levels(sampler: str, by: Any) -> None:
    model = patched("rerender")
    assert relative_error(by(model, (5,), sampler), by(model, (), sampler)) < ROUNDING


def test_so_they_are_where_the_inversion_stops_below_the_top() -> None:
    model = patched("tokenflow", 0.7)
    assert (
        relative_error(by_sigmas(model, (1, 4), depth=0.7), by_sigmas(model, depth=0.7)) < ROUNDING
    )


def test_so_they_are_with_a_mask() -> None:
    # Soft, and whole in the right half.
    mask = torch.linspace(0, 2, SIZE[1]).clamp(0, 1).expand(1, *SIZE)
    model = applied(correspondences=matched(), injection=injection(), mask=mask)
    assert relative_error(by_sigmas(model, (4,)), by_sigmas(model)) < ROUNDING


def injected(
    monkeypatch: pytest.MonkeyPatch, attention: float, features: float, **inputs: Any
) -> tuple[list[float], list[float]]:
    """The noise levels at which an edit takes the source's attention, and its features."""
    levels: tuple[dict[float, None], dict[float, None]] = ({}, {})

    def see(model_call: Any, frames_pass: Any) -> None:
        for name in frames_pass.source:
            levels[not name.endswith("attn1")][model_call.sigma] = None

    with monkeypatch.context() as patch:
        watch(patch, see)
        plug_and_play = call(PlugAndPlay.execute, attention, features)[0]
        edit(
            correspondences=matched(inputs.pop("depth", 1.0)),
            consistency="per frame",
            injection=plug_and_play,
            **inputs,
        )
    return list(levels[0]), list(levels[1])


@pytest.mark.parametrize(
    ("inputs", "steps"),
    [
        ({}, range(STEPS)),
        ({"preset": "fast"}, [0, 2, 4, 6, 8]),
        ({"start": 0.6}, range(4, STEPS)),
        ({"depth": 0.6}, range(4, STEPS)),
        ({"depth": 0.6, "start": 0.5}, range(7, STEPS)),
    ],
    ids=str,
)
def test_a_share_means_the_same_noise_levels_in_every_run(
    inputs: dict[str, Any], steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first int(share * steps) steps of the schedule that was inverted, wherever a run begins
    and how many of them it takes.
    """
    schedule = inverted()[0].sigmas.tolist()
    attention, features = injected(monkeypatch, 0.55, 0.8, **inputs)
    assert attention == pytest.approx([schedule[step] for step in steps if step < 5])
    assert features == pytest.approx([schedule[step] for step in steps if step < 8])
