"""Every sampler of the host, and every node of the host that samples."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, DisableNoise, SamplerCustom, SamplerCustomAdvanced
from torch import Tensor

import nodes

from .helpers import (
    FRAMES,
    NEGATIVE,
    POSITIVE,
    SOURCE,
    STEPS,
    applied,
    call,
    edit,
    injection,
    invert,
    inverted,
    matched,
    relative_error,
    stock,
    tiny_model,
    watch,
)
from .tiny_models import moving_clip

SMALL = 8, 8


def advanced(model: Any, noisy: Any, sampler: str = "euler", cfg: float = 4.0, seed: int = 0) -> Tensor:
    """KSampler (Advanced) with added noise disabled."""
    arguments = "disable", seed, STEPS, cfg, sampler, "normal", POSITIVE, NEGATIVE, noisy, 0, STEPS, "disable"
    return call(nodes.KSamplerAdvanced().sample, model, *arguments)[0]["samples"]


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_edits(name: str) -> None:
    """Off-grid evaluations included: the source's features are computed at whatever sigma the sampler asks for."""
    correspondences = matched(3, SMALL, "recompute")
    found = edit(correspondences=correspondences, sampler_name=name, injection=injection(), seed=1)
    assert found.shape == (3, 4, *SMALL)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_a_single_frame_is_the_plain_hosts_with_every_sampler(name: str) -> None:
    """One frame is its own keyframe: joint attention and propagation change nothing. A sampler's own noise is of the same seed."""
    _, noisy, _ = inverted(1, SMALL)
    found = edit(correspondences=matched(1, SMALL), sampler_name=name, cfg=1.0, seed=1)
    assert relative_error(found, advanced(tiny_model(), noisy, name, cfg=1.0, seed=1)) < 1e-3


@pytest.mark.parametrize("name", ["dpm_2", "uni_pc"])
def test_sigmas_are_the_samplers_own(name: str) -> None:
    """These leave out the last but one noise level."""
    _, noisy, _ = inverted()
    assert torch.equal(edit(sampler_name=name), advanced(applied(), noisy, name))


@pytest.mark.parametrize("name", ["heun", "dpm_2", "dpmpp_sde"])
def test_keyframes_belong_to_the_step_between_whose_noise_levels_the_sampler_looks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, list[int]]] = []

    def see(model_call: Any, frames_pass: Any) -> None:
        if type(frames_pass).__name__ == "KeyframePass":
            seen.append((model_call.sigma, frames_pass.frames.tolist()))

    watch(monkeypatch, see)
    edit(sampler_name=name)
    grid = inverted()[0].sigmas.tolist()
    assert name == "heun" or any(min(abs(sigma / level - 1) for level in grid[:-1]) > 0.01 for sigma, _ in seen)
    for sigma, keyframes in seen:
        step = max([j for j in range(STEPS) if grid[j] >= sigma * 0.999], default=0)
        assert keyframes == matched().steps[step].keyframes.tolist()


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_all_sampling_nodes_give_the_samplers_bits(cfg: float) -> None:
    wanted = edit(cfg=cfg, injection=injection())
    model = applied(injection=injection())
    _, noisy, sigmas = inverted()
    sampler = comfy.samplers.sampler_object("euler")
    assert torch.equal(advanced(model, noisy, cfg=cfg), wanted)
    assert torch.equal(call(SamplerCustom.execute, model, False, 0, cfg, POSITIVE, NEGATIVE, sampler, sigmas, noisy)[0]["samples"], wanted)
    guider = call(CFGGuider.execute, model, POSITIVE, NEGATIVE, cfg)[0]
    noise = call(DisableNoise.execute)[0]
    assert torch.equal(call(SamplerCustomAdvanced.execute, noise, guider, sampler, sigmas, noisy)[0]["samples"], wanted)


def test_inversion_starts_at_the_clean_latents() -> None:
    clip = moving_clip(FRAMES, 8, 16)["samples"]
    inversion = inverted()[0]
    assert inversion.sigmas[-1] == 0
    assert torch.allclose(inversion.latents[-1], tiny_model().model.process_latent_in(clip))


def test_fixed_point_reconstructs_better_than_plain_inversion() -> None:
    clip = moving_clip(2, *SMALL)

    def error(**inputs: Any) -> float:
        _, noisy, sigmas = invert(tiny_model(), clip, steps=20, depth=0.2, **inputs)  # where steps are small the iterations converge
        sampler = comfy.samplers.sampler_object("euler")
        back = call(SamplerCustom.execute, tiny_model(), False, 0, 1.0, SOURCE, [], sampler, sigmas, noisy)[0]["samples"]
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
