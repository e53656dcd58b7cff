"""Every sampler of the host, and every node of the host that samples."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    CFGGuider,
    DisableNoise,
    SamplerCustom,
    SamplerCustomAdvanced,
)
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from torch import Tensor

import nodes

from ..helpers import (
    FRAMES,
    NEGATIVE,
    POSITIVE,
    SOURCE,
    STEPS,
    built,
    call,
    injection,
    invert,
    relative_error,
    watch,
)
from ..once import once_a_module
from ..small import applied, edit, extracted, inverted, matched, stock, tiny_model
from ..tiny_models import moving_clip

SMALL = 8, 8


def advanced(
    model: Any, noisy: Any, sampler: str = "euler", cfg: float = 4.0, seed: int = 0
) -> Tensor:
    """KSampler (Advanced) with added noise disabled."""
    arguments = (
        "disable",
        seed,
        STEPS,
        cfg,
        sampler,
        "normal",
        POSITIVE,
        NEGATIVE,
        noisy,
        0,
        STEPS,
        "disable",
    )
    return call(nodes.KSamplerAdvanced().sample, model, *arguments)[0]["samples"]


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_edits(name: str) -> None:
    """Off-grid evaluations included: the source's features are computed at whatever sigma the
    sampler asks for.
    """
    correspondences = matched(3, SMALL, "recompute")
    # It takes dozens of evaluations for a whole path through a random network.
    start = 0.3 if name == "dpm_adaptive" else 1.0
    found = edit(
        correspondences=correspondences,
        sampler_name=name,
        injection=injection(),
        seed=1,
        start=start,
    )
    assert found.shape == (3, 4, *SMALL)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_a_single_frame_is_the_plain_hosts_with_every_sampler(name: str) -> None:
    """One frame is its own keyframe: joint attention and propagation change nothing.

    A sampler's own noise is of the same seed.
    """
    _, noisy, _ = inverted(1, SMALL)
    found = edit(correspondences=matched(1, SMALL), sampler_name=name, cfg=1.0, seed=1)
    assert relative_error(found, advanced(tiny_model(), noisy, name, cfg=1.0, seed=1)) < 1e-3


@pytest.mark.parametrize("name", ["dpm_2", "uni_pc"])
def test_sigmas_are_the_samplers_own(name: str) -> None:
    """These leave out the last but one noise level."""
    _, noisy, _ = inverted()
    assert torch.equal(edit(sampler_name=name), advanced(applied(), noisy, name))


# The steps that a sampler's evaluations belong to over three steps, of which the last, to sigma 0,
# often needs one evaluation only.
# Heun's second stands on the level where Euler's next step would begin.
EVALUATIONS = {
    "euler": [0, 1, 2],
    "heun": [0, 0, 1, 1, 2],
    "heunpp2": [0, 0, 0, 1, 1, 2],
    "dpm_2": [0, 0, 1, 1, 2],
    "dpm_2_ancestral": [0, 0, 1, 1, 2],
    "dpmpp_2s_ancestral": [0, 0, 1, 1, 2],
    "dpmpp_sde": [0, 0, 1, 1, 2],
    "dpmpp_2m": [0, 1, 2],
    "euler_cfg_pp": [0, 1, 2],
    "sa_solver_pece": [0, 1, 1, 2, 2],
    "seeds_2": [0, 0, 1, 1, 2],
    "seeds_3": [0, 0, 0, 1, 1, 1, 2],
    "uni_pc": [0, 1, 2],
}


@once_a_module
def told_apart() -> Any:
    """Matches whose keyframes differ from step to step."""
    for seed in range(100):
        found = call(
            BuildCorrespondences.execute,
            extracted(6, SMALL),
            keyframe_interval=3,
            intervals="even",
            seed=seed,
            backend="torch",
        )[0]
        if len({tuple(step.keyframes.tolist()) for step in found.steps}) == STEPS:
            return found
    raise AssertionError("no seed draws other keyframes at every step")


@pytest.mark.parametrize("name", EVALUATIONS)
def test_keyframes_stay_fixed_within_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def see(_: Any, frames_pass: Any) -> None:
        if type(frames_pass).__name__ == "KeyframePass":
            seen.append(frames_pass.frames.tolist())

    watch(monkeypatch, see)
    edit(correspondences=told_apart(), sampler_name=name)
    # Some leave out the last but one.
    own = comfy.samplers.KSampler(tiny_model(), STEPS, torch.device("cpu"), name, "normal").sigmas
    inverted_at = inverted(6, SMALL)[0].sigmas[:-1]
    closest = [int((inverted_at / level).log().abs().argmin()) for level in own[:-1]]
    assert len(set(closest)) > 1
    assert seen == [
        told_apart().steps[closest[step]].keyframes.tolist() for step in EVALUATIONS[name]
    ]


def test_where_a_sampler_cannot_be_rehearsed_the_noise_levels_say_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of another pack that asks the model for what only a real one has."""
    heun = comfy.samplers.sampler_object("heun")

    def demanding(model: Any, *args: Any, **kwargs: Any) -> Tensor:
        assert model.latent_image is not None
        return heun.sampler_function(model, *args, **kwargs)

    seen: list[list[int]] = []
    watch(
        monkeypatch,
        lambda _, one: (
            seen.append(one.frames.tolist()) if type(one).__name__ == "KeyframePass" else None
        ),
    )
    _, noisy, sigmas = inverted(6, SMALL)
    model = applied(correspondences=told_apart())
    call(
        SamplerCustom.execute,
        model,
        False,
        0,
        4.0,
        POSITIVE,
        NEGATIVE,
        comfy.samplers.KSAMPLER(demanding),
        sigmas,
        noisy,
    )
    assert seen == [told_apart().steps[step].keyframes.tolist() for step in [0, 1, 1, 2, 2]]


@pytest.mark.parametrize("name", comfy.samplers.SCHEDULER_NAMES)
def test_every_scheduler_edits(name: str) -> None:
    inversion = invert(
        tiny_model(), moving_clip(3, *SMALL), scheduler=name, steps=5, refinement="none"
    )[0]
    features = call(ExtractFeatures.execute, tiny_model(), inversion, layers="all", steps="every")[
        0
    ]
    found = built(features)
    samples = edit(correspondences=found, injection=injection())
    assert samples.shape == (3, 4, *SMALL)
    assert torch.isfinite(samples).all()


def test_a_sampler_that_writes_into_its_levels_spoils_nothing() -> None:
    """uni_pc does, and the host hands it the very tensor of the SIGMAS socket."""
    inversion, noisy, sigmas = invert(tiny_model(), moving_clip(2, *SMALL), refinement="none")
    sampler = comfy.samplers.sampler_object("uni_pc")
    call(SamplerCustom.execute, tiny_model(), False, 0, 1.0, SOURCE, [], sampler, sigmas, noisy)
    assert sigmas[-1] != 0
    assert inversion.sigmas[-1] == 0


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_levels_other_than_the_inversions_edit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another schedule in KSampler (Advanced):
    the source's latents between two stored levels are interpolated.
    """
    levels: list[float] = []
    watch(monkeypatch, lambda model_call, _: levels.append(model_call.sigma))
    _, noisy, _ = inverted()
    arguments = (
        "disable",
        0,
        STEPS,
        4.0,
        "euler",
        name,
        POSITIVE,
        NEGATIVE,
        noisy,
        0,
        STEPS,
        "disable",
    )
    found = call(nodes.KSamplerAdvanced().sample, applied(injection=injection()), *arguments)[0][
        "samples"
    ]
    assert torch.isfinite(found).all()
    assert not set(levels) <= set(inverted()[0].sigmas.tolist())


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_all_sampling_nodes_give_the_samplers_bits(cfg: float) -> None:
    wanted = edit(cfg=cfg, injection=injection())
    model = applied(injection=injection())
    _, noisy, sigmas = inverted()
    sampler = comfy.samplers.sampler_object("euler")
    assert torch.equal(advanced(model, noisy, cfg=cfg), wanted)
    assert torch.equal(
        call(
            SamplerCustom.execute, model, False, 0, cfg, POSITIVE, NEGATIVE, sampler, sigmas, noisy
        )[0]["samples"],
        wanted,
    )
    guider = call(CFGGuider.execute, model, POSITIVE, NEGATIVE, cfg)[0]
    noise = call(DisableNoise.execute)[0]
    assert torch.equal(
        call(SamplerCustomAdvanced.execute, noise, guider, sampler, sigmas, noisy)[0]["samples"],
        wanted,
    )


def test_inversion_starts_at_the_clean_latents() -> None:
    clip = moving_clip(FRAMES, 8, 16)["samples"]
    inversion = inverted()[0]
    assert inversion.sigmas[-1] == 0
    assert torch.allclose(inversion.latents[-1], tiny_model().model.process_latent_in(clip))


def test_fixed_point_reconstructs_better_than_plain_inversion() -> None:
    clip = moving_clip(2, *SMALL)

    def error(**inputs: Any) -> float:
        # Where steps are small the iterations converge.
        _, noisy, sigmas = invert(tiny_model(), clip, steps=20, depth=0.2, **inputs)
        sampler = comfy.samplers.sampler_object("euler")
        back = call(
            SamplerCustom.execute, tiny_model(), False, 0, 1.0, SOURCE, [], sampler, sigmas, noisy
        )[0]["samples"]
        return relative_error(back, clip["samples"])

    plain = error(refinement="none")
    assert error(refinement="fixed point", iterations=2) < plain / 10
    assert error(refinement="fixed point", iterations=8) < 1e-4


def test_start_below_one_is_the_end_of_the_schedule() -> None:
    """SDEdit: the last step alone, from the source's latents at its noise level."""
    inversion, _, sigmas = inverted()
    noisy = {"samples": tiny_model().model.process_latent_out(inversion.latents[-2])}
    sampler = comfy.samplers.sampler_object("euler")
    arguments = applied(), False, 0, 4.0, POSITIVE, NEGATIVE, sampler, sigmas[-2:], noisy
    assert torch.equal(edit(start=0.3), call(SamplerCustom.execute, *arguments)[0]["samples"])


def test_the_edit_is_not_the_plain_host() -> None:
    """Else the equalities above would show nothing."""
    assert relative_error(edit(), stock(tiny_model())) > 0.01
