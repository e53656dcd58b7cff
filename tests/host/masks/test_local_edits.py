"""A mask per frame: outside of it the clip stays the source, and what is edited inside sees the
source around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from tokenflow_pack.host.editing.edit_run import EditRun
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.modes import MODES
from tokenflow_pack.tokenflow_ops import SourceFeatures
from torch import Tensor

import nodes

from ..helpers import (
    FRAMES,
    NEGATIVE,
    POSITIVE,
    SIZE,
    call,
    injection,
    invert,
    relative_error,
    untouched,
)
from ..small import applied, edit, extracted, inverted, matched, stock, tiny_model
from ..tiny_models import moving_clip

# A square that moves with the frames, in pixels; it covers whole latent cells.
HEIGHT, WIDTH = (side * 8 for side in SIZE)


def moving_mask() -> Tensor:
    masks = torch.zeros(FRAMES, HEIGHT, WIDTH)
    for frame in range(FRAMES):
        masks[frame, 16:48, 8 * (2 + frame) : 8 * (6 + frame)] = 1
    return masks


def cells(masks: Tensor) -> Tensor:
    """The latent cells of a mask of whole cells, (N, 1, h, w) bool."""
    return masks[:, None, 4::8, 4::8] > 0.5


def source() -> Tensor:
    return moving_clip(FRAMES, *SIZE)["samples"]


def outside(samples: Tensor, masks: Tensor) -> Tensor:
    return samples.masked_fill(cells(masks), 0.0)


@pytest.mark.parametrize(
    "inputs",
    [{}, {"start": 0.6}, {"noise": "fresh", "start": 0.6}],
    ids=["whole path", "part of it", "fresh noise"],
)
@pytest.mark.parametrize("consistency", ["tokenflow", "per frame"])
def test_outside_its_frames_mask_the_source_stays_and_inside_the_edit_is(
    consistency: str, inputs: dict[str, Any]
) -> None:
    masks = moving_mask()
    found = edit(mask=masks, consistency=consistency, injection=injection(), **inputs)
    assert relative_error(outside(found, masks), outside(source(), masks)) < 1e-5
    inside = cells(masks).expand_as(found)
    assert relative_error(found[inside], source()[inside]) > 0.1


def with_noise_mask(masks: Tensor) -> Any:
    """Correspondences of the clip inverted with a noise mask, by the host's node."""
    latents = nodes.SetLatentNoiseMask().set_mask(moving_clip(FRAMES, *SIZE), masks)[0]
    inversion, noisy, _ = invert(
        tiny_model(),
        {**latents, "batch_index": [1], "downscale_ratio_spacial": 8},
        check_reconstruction=False,
    )
    # The host's samplers would keep the noise outside of a mask.
    assert set(noisy) == {"samples", "batch_index"}
    known = extracted()
    features = SourceFeatures(
        inversion, known.shapes, known.matched_by, known.steps, known.store, known.compute
    )
    return dataclasses.replace(matched(), features=features)


@pytest.mark.parametrize(
    "masks",
    [moving_mask(), moving_mask()[:1], moving_mask()[0]],
    ids=["for every frame", "for all", "flat"],
)
def test_a_noise_mask_of_the_inverted_latents_is_the_edits(masks: Tensor) -> None:
    correspondences = with_noise_mask(masks)
    found = edit(correspondences=correspondences)
    assert torch.equal(found, edit(mask=masks))
    assert torch.equal(stock(applied(correspondences=correspondences)), stock(applied(mask=masks)))
    assert relative_error(found, edit()) > 0.1
    everywhere = torch.ones(1, 8, 8)
    assert torch.equal(
        edit(correspondences=correspondences, mask=everywhere), edit(mask=everywhere)
    )


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "euler_ancestral", "uni_pc", "lcm"])
def test_the_source_stays_with_other_samplers(name: str) -> None:
    masks = moving_mask()
    found = edit(mask=masks, sampler_name=name)
    assert relative_error(outside(found, masks), outside(source(), masks)) < 1e-6


def shown(monkeypatch: pytest.MonkeyPatch, **inputs: Any) -> list[tuple[float, Tensor]]:
    """The noise levels at which the model is asked during an edit, and the latents it is shown."""
    calls, evaluate = [], EditRun.evaluate

    def seen(self: EditRun, model_call: Any) -> list[Tensor]:
        calls.append((model_call.sigma, model_call.x.clone()))
        return evaluate(self, model_call)

    with monkeypatch.context() as patched:
        patched.setattr(EditRun, "evaluate", seen)
        edit(**inputs)
    return calls


def test_what_the_model_sees_outside_is_the_stored_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not noise of its own: the source at the very noise level of the evaluation."""
    inversion, masks = inverted()[0], moving_mask()
    calls = shown(monkeypatch, mask=masks, mask_from=0.0, sampler_name="dpm_2")
    for level, latents in calls:
        path = inversion.latents_at(level)
        assert relative_error(outside(latents, masks), outside(path, masks)) < 1e-6
    assert any(float((inversion.sigmas - level).abs().min()) > 0.01 for level, _ in calls)


@pytest.mark.parametrize("sampler", ["euler", "dpm_2"])
def test_before_the_mask_holds_everything_is_edited(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The level at which a step begins decides, for all its evaluations."""
    inversion, masks = inverted()[0], moving_mask()
    masked = shown(monkeypatch, mask=masks, mask_from=0.5, sampler_name=sampler)
    free = shown(monkeypatch, sampler_name=sampler)
    for (level, latents), (_, others) in zip(masked, free, strict=True):
        begins = min(known for known in inversion.sigmas.tolist() if known >= level - 1e-4)
        if begins > 1.62:  # half of SD's schedule
            assert torch.equal(latents, others)
        else:
            path = inversion.latents_at(level)
            assert relative_error(outside(latents, masks), outside(path, masks)) < 1e-6


def test_the_mask_holds_from_a_fifth_of_the_schedule_on() -> None:
    masks = moving_mask()
    assert torch.equal(edit(mask=masks), edit(mask=masks, mask_from=0.2))
    found = edit(mask=masks, mask_from=1.0)
    assert relative_error(outside(found, masks), outside(source(), masks)) < 1e-6
    inside = cells(masks).expand_as(found)
    assert torch.equal(found[inside], edit()[inside])


def test_a_mask_of_everything_is_no_mask_and_of_nothing_is_the_source() -> None:
    everything = edit(mask=torch.ones(1, HEIGHT, WIDTH), injection=injection())
    assert relative_error(everything, edit(injection=injection())) < 1e-6
    assert relative_error(edit(mask=torch.zeros(HEIGHT, WIDTH)), source()) < 1e-5


def test_half_a_mask_blends() -> None:
    half = edit(mask=torch.full((1, HEIGHT, WIDTH), 0.5))
    assert relative_error(half, source()) > 0.05
    assert relative_error(half, edit()) > 0.05


@pytest.mark.parametrize("consistency", MODES)
def test_passes_of_any_size_give_the_same(consistency: str) -> None:
    inputs = {"mask": moving_mask(), "consistency": consistency, "injection": injection()}
    assert relative_error(edit(frames_per_pass=2, **inputs), edit(**inputs)) < 1e-4


def test_apply_under_a_stock_sampler_keeps_the_source_too() -> None:
    _, noisy, sigmas = inverted()
    masks = moving_mask()
    with untouched(tiny_model()):
        model = applied(mask=masks)
        sampler = comfy.samplers.sampler_object("euler")
        found = call(
            SamplerCustom.execute, model, False, 0, 4.0, POSITIVE, NEGATIVE, sampler, sigmas, noisy
        )[0]["samples"]
    assert torch.equal(found, edit(mask=masks))


@pytest.mark.parametrize("run", [edit, applied], ids=["Sampler", "Apply"])
@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.ones(2, 8, 8), "2 masks for 5"),
        (torch.full((1, 8, 8), torch.nan), "NaN"),
        (torch.ones(1, 0, 8), "nothing in it"),
    ],
    ids=["too few", "NaN", "empty"],
)
def test_masks_that_do_not_fit_are_refused(
    run: Callable[..., Any], mask: Tensor, found: str
) -> None:
    with pytest.raises(NodeError, match=rf"input 'mask': .*{found}"):
        run(mask=mask)
