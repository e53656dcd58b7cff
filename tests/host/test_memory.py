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
from tokenflow_pack.host import memory
from tokenflow_pack.host.modes import MODES
from tokenflow_pack.nodes.injection import PlugAndPlay

from .helpers import FRAMES, call, edit, injection, invert, inverted, matched, moving_clip, relative_error, tiny_model, watch, watched

SIZE = 8, 16


def short_of_memory(most: int) -> Any:
    """A model whose UNet takes no more than so many rows, as a GPU would say it."""

    def see(args: dict[str, Any]) -> None:
        if len(args["input"]) > most:
            raise model_management.OOM_EXCEPTION("no room")

    return watched(tiny_model(), see)


@pytest.mark.parametrize("consistency", [mode for mode in MODES if mode not in ("rerender", "joint attention", "tokenflow, public code")])
def test_where_memory_runs_out_passes_get_smaller_and_the_edit_is_the_same(consistency: str, caplog: pytest.LogCaptureFixture) -> None:
    throughout = call(PlugAndPlay.execute, 1.0, 1.0)[0]
    inputs = {"consistency": consistency, "injection": throughout, "frames_per_pass": 4, "correspondences": matched(8, SIZE, interval=4)}
    found = edit(short_of_memory(4), **inputs)  # two frames with and without the prompt
    assert relative_error(found, edit(**inputs)) < 1e-5
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING and "TokenFlow" in record.getMessage()
    ]
    assert warnings == ["TokenFlow Sampler: out of memory, on with 2 frames in one pass."]


def test_an_inversion_goes_on_in_smaller_passes(caplog: pytest.LogCaptureFixture) -> None:
    found = invert(short_of_memory(2), moving_clip(FRAMES, *SIZE))[0]
    assert relative_error(found.latents, inverted()[0].latents) < 1e-4
    assert any("DDIM Invert Video: out of memory, on with 2 frames" in record.getMessage() for record in caplog.records)


def test_fewer_keyframes_are_edited_together_where_they_do_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    every = matched(interval=1)  # five keyframes, ten rows
    found = edit(short_of_memory(4), correspondences=every, injection=injection())
    assert relative_error(found, edit(correspondences=every, injection=injection(), attended_keyframes=2)) < 1e-5
    assert any("on with 2 keyframes that attend to each other" in record.getMessage() for record in caplog.records)


def test_not_even_a_frame_fits() -> None:
    with pytest.raises(model_management.OOM_EXCEPTION):
        edit(short_of_memory(0))


@pytest.mark.parametrize(("until", "rest"), [(0.0, FRAMES - 3), (1.0, 0)])
def test_keyframes_run_once_and_carried_frames_not_at_all(until: float, rest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[str, list[int]] = {}
    watch(monkeypatch, lambda _, frames_pass: runs.setdefault(type(frames_pass).__name__, []).append(len(frames_pass.frames)))
    edit(carry_until=until)
    assert runs["KeyframePass"] == [3, 3, 3]
    assert runs.get("PropagationPass", []) == ([rest] * 3 if rest else [])


def test_a_path_that_would_fill_the_memory_is_kept_in_a_file_that_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
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
