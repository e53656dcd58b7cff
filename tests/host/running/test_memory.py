"""What happens where memory runs out, and what is not computed at all."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy import model_management
from comfy_extras.nodes_freelunch import FreeU
from tokenflow_pack.host import memory
from tokenflow_pack.host.families.unet import find
from tokenflow_pack.host.measuring.reconstruction import compare_pictures, describe_loss
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.tokenflow_ops import ATTENTION
from tokenflow_pack.tokenflow_ops.passes import KeyframePass, PropagationPass
from torch import Tensor

from ..helpers import (
    FRAMES,
    OWN_GUIDANCE,
    built,
    call,
    injection,
    invert,
    moving_clip,
    relative_error,
    watch,
    watched,
)
from ..small import edit, inverted, matched, tiny_model

SIZE = 8, 16


def numbered(error: Exception, code: int) -> Exception:
    error.error_code = code  # type: ignore[attr-defined]
    return error


# As a GPU says it: at once, and where it is found out after the call has returned.
NO_ROOM = model_management.OOM_EXCEPTION("no room")
TOLD_LATE = torch.AcceleratorError("CUDA error: out of memory")
FORMS = {
    "at once": NO_ROOM,
    "late": TOLD_LATE,
    "by number": numbered(torch.AcceleratorError("CUDA error"), 2),
}
OTHERS = {
    "another of the GPU's": numbered(
        torch.AcceleratorError("CUDA error: device-side assert triggered"), 710
    ),
    "torch's": RuntimeError("out of memory, says somebody else"),
    "somebody's": ValueError("no room"),
}


def short_of_memory(most: int, error: Exception = NO_ROOM) -> Any:
    """A model whose UNet takes no more than so many rows."""

    def see(args: dict[str, Any]) -> None:
        if len(args["input"]) > most:
            raise error

    return watched(tiny_model(), see)


@pytest.mark.parametrize(
    "consistency",
    [
        mode
        for mode in MODES
        if mode not in ("rerender", "joint attention", "tokenflow, public code")
    ],
)
def test_where_memory_runs_out_passes_get_smaller_and_the_edit_is_the_same(
    consistency: str, caplog: pytest.LogCaptureFixture
) -> None:
    throughout = call(PlugAndPlay.execute, 1.0, 1.0)[0]
    inputs = {
        **OWN_GUIDANCE,  # frames with two prompts each
        "consistency": consistency,
        "injection": throughout,
        "frames_per_pass": 4,
        "correspondences": matched(8, SIZE, interval=4),
    }
    found = edit(short_of_memory(4), **inputs)  # two frames with and without the prompt
    assert relative_error(found, edit(**inputs)) < 1e-5
    warnings = [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "TokenFlow" in record.getMessage()
    ]
    assert warnings == ["TokenFlow Sampler: out of memory, on with 2 frames in one pass."]


@pytest.mark.parametrize(("streamed", "expected"), [(True, 3), (False, 1)])
def test_a_model_larger_than_the_card_takes_what_a_host_that_streams_weights_can_give(
    monkeypatch: pytest.MonkeyPatch, streamed: bool, expected: int
) -> None:
    """Newer hosts fetch the weights that find no room; older ones keep the model in their way."""
    model = tiny_model().clone()
    shape = FRAMES, 4, *SIZE
    room = 3.5 * 1.5 * model.model.memory_required([2, *shape[1:]])
    monkeypatch.setattr(memory.model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(
        memory.model_management, "get_total_memory", lambda device: model.model_size() / 2
    )
    monkeypatch.setattr(model, "is_dynamic", lambda: streamed, raising=False)
    monkeypatch.setattr(model, "get_free_memory", lambda device: room, raising=False)
    assert memory.frames_at_once(model, shape) == expected


def test_an_inversion_goes_on_in_smaller_passes(caplog: pytest.LogCaptureFixture) -> None:
    found = invert(short_of_memory(2), moving_clip(FRAMES, *SIZE))[0]
    assert relative_error(found.latents, inverted()[0].latents) < 1e-4
    assert any(
        "DDIM Invert Video: out of memory, on with 2 frames" in record.getMessage()
        for record in caplog.records
    )


def test_fewer_keyframes_are_edited_together_where_they_do_not_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    every = matched(interval=1)  # five keyframes, ten rows
    found = edit(short_of_memory(4), correspondences=every, injection=injection())
    assert (
        relative_error(
            found, edit(correspondences=every, injection=injection(), attended_keyframes=2)
        )
        < 1e-5
    )
    assert any(
        "on with 2 keyframes that attend to each other" in record.getMessage()
        for record in caplog.records
    )


def test_not_even_a_frame_fits() -> None:
    with pytest.raises(model_management.OOM_EXCEPTION):
        edit(short_of_memory(0))


@pytest.mark.parametrize("error", FORMS.values(), ids=FORMS)
def test_memory_may_run_out_in_every_form_that_the_host_counts(error: Exception) -> None:
    every = matched(interval=1)
    inputs = {
        "correspondences": every,
        "injection": injection(),
        "attended_keyframes": 2,
        "frames_per_pass": 2,
    }
    assert (
        relative_error(
            edit(short_of_memory(2, error), **inputs), edit(**inputs | {"attended_keyframes": 1})
        )
        < 1e-5
    )
    with pytest.raises(type(error)) as raised:
        edit(short_of_memory(0, error), **inputs)
    assert raised.value is error


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS)
def test_other_errors_are_raised_as_they_are(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)) as raised:
        edit(short_of_memory(2, error), injection=injection())
    assert raised.value is error
    assert "out of memory" not in caplog.text


@pytest.mark.parametrize("error", FORMS.values(), ids=FORMS)
def test_an_inversion_is_kept_where_its_check_has_no_memory_to_decode(error: Exception) -> None:
    class Vae:
        def decode(self, samples: Tensor) -> Tensor:
            raise error

    found = invert(tiny_model(), moving_clip(2, *SIZE), vae=Vae())
    assert (
        relative_error(found[0].latents, invert(tiny_model(), moving_clip(2, *SIZE))[0].latents)
        == 0
    )
    clean = found[0].latents[-1]
    assert "signal to error; there is no memory to decode them" in describe_loss(
        tiny_model(), Vae(), found[0].latents[0], clean
    )
    with pytest.raises(type(error)):
        compare_pictures(
            "Check Reconstruction", tiny_model(), Vae(), clean, clean, None, lambda: None
        )


@pytest.mark.parametrize(("until", "rest"), [(0.0, FRAMES - 3), (1.0, 0)])
def test_keyframes_run_once_and_carried_frames_not_at_all(
    until: float, rest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: dict[str, list[int]] = {}
    watch(
        monkeypatch,
        lambda _, frames_pass: runs.setdefault(type(frames_pass).__name__, []).append(
            len(frames_pass.frames)
        ),
    )
    edit(carry_until=until)
    assert runs["KeyframePass"] == [3, 3, 3]
    assert runs.get("PropagationPass", []) == ([rest] * 3 if rest else [])


def test_a_path_that_would_fill_the_memory_is_kept_in_a_file_that_goes_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = inverted()[0].latents
    folder = Path(folder_paths.get_temp_directory())
    before = set(folder.glob("*.path"))
    monkeypatch.setattr(memory, "fits_in_memory", lambda size: size < wanted.numel() * 4)
    found = invert(tiny_model(), moving_clip(FRAMES, *SIZE))
    assert torch.equal(found[0].latents, wanted)
    assert len(set(folder.glob("*.path")) - before) == 1
    del found
    gc.collect()
    assert set(folder.glob("*.path")) == before


@pytest.mark.parametrize("patch", ["none", "FreeU"])
def test_patches_on_blocks_see_all_of_them(patch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else frames run nothing below full resolution, and no row is spent there."""
    model = FreeU().patch(tiny_model(), 1.1, 1.2, 0.9, 0.2)[0] if patch == "FreeU" else tiny_model()
    skipping: set[bool] = set()
    watch(
        monkeypatch,
        lambda _, frames_pass: (
            skipping.add(frames_pass.skips_deep)
            if "Propagation" in type(frames_pass).__name__
            else None
        ),
    )
    edit(model, carry_until=0.0)
    assert skipping == {patch == "none"}


def test_source_features_between_levels_are_the_keyframes_carried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plug-and-Play's of the ResBlock, where attention alone is propagated and the
    source was seen at one level.
    """
    features = call(ExtractFeatures.execute, tiny_model(), inverted()[0])[0]
    found = built(features)
    name = find(tiny_model().model.diffusion_model).injected_hidden
    keyframes: dict[str, torch.Tensor] = {}
    frames: list[int] = []

    def see(asked: Any, frames_pass: Any) -> None:
        if isinstance(frames_pass, KeyframePass) and name in frames_pass.source:
            keyframes[name] = frames_pass.source[name]
        if not isinstance(frames_pass, PropagationPass) or name not in frames_pass.source:
            return
        matches = found.steps[inverted()[0].closest_step(asked.sigma)]
        layer = next(layer for layer in features.shapes if layer.startswith("output_blocks.1."))
        past, future = (side.long() for side in matches.tokens(features.matched_by[layer]))
        weights = matches.weight(features.matched_by[layer])
        for row, frame in enumerate(frames_pass.frames.tolist()):
            before, after = matches.near.past[frame], matches.near.future[frame]
            weight = weights[frame]
            planes = keyframes[name].flatten(2)
            wanted = (
                weight * planes[after][:, future[frame]]
                + (1 - weight) * planes[before][:, past[frame]]
            )
            torch.testing.assert_close(frames_pass.source[name][row].flatten(1), wanted)
            frames.append(frame)

    watch(monkeypatch, see)
    edit(correspondences=found, injection=injection(), propagation=ATTENTION)
    assert frames
