"""The live preview shows several frames under the pack's sampler and the host's own,
and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import comfy.utils
import latent_preview
import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, DisableNoise, SamplerCustomAdvanced
from PIL import Image
from tokenflow_pack.host.preview import show_frames
from torch import Tensor

import nodes

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    SIZE,
    STEPS,
    applied,
    call,
    edit,
    inverted,
    matched,
    tiny_model,
)

Event = tuple[int, int, Image.Image | None]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What progress bars tell the page: value, total, picture."""
    seen: list[Event] = []
    matched(), matched(2)  # made before anybody looks

    def hook(value: int, total: int, preview: Any, node_id: Any = None) -> None:
        assert preview is None or (preview[0], preview[2]) == (
            "JPEG",
            latent_preview.MAX_PREVIEW_RESOLUTION,
        )
        seen.append((value, total, preview and preview[1]))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(
        latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB
    )
    return seen


def by_ksampler(found: Any) -> Tensor:
    arguments = (
        "disable",
        0,
        STEPS,
        4.0,
        "euler",
        "normal",
        POSITIVE,
        NEGATIVE,
        inverted(len(found.steps[0].near.past), SIZE)[1],
        0,
        STEPS,
    )
    return call(
        nodes.KSamplerAdvanced().sample, applied(correspondences=found), *arguments, "disable"
    )[0]["samples"]


def by_custom_advanced(found: Any) -> Tensor:
    """Its second output, which it takes from its callback."""
    (guider,) = call(BasicGuider.execute, applied(correspondences=found), POSITIVE)
    _, noisy, sigmas = inverted(len(found.steps[0].near.past), SIZE)
    (noise,) = call(DisableNoise.execute)
    return call(
        SamplerCustomAdvanced.execute,
        noise,
        guider,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        noisy,
    )[1]["samples"]


@pytest.mark.parametrize(
    "sample", [lambda found: edit(correspondences=found), by_ksampler, by_custom_advanced]
)
def test_each_step_shows_the_hosts_frame_and_then_four(
    sample: Callable[[Any], Tensor], events: list[Event]
) -> None:
    latents = sample(matched())
    assert [event[:2] for event in events] == [
        (step, STEPS) for step in range(1, STEPS + 1) for _ in range(2)
    ]
    hosts, ours = (
        [picture for _, _, picture in events[::2]],
        [picture for _, _, picture in events[1::2]],
    )
    height, width = SIZE
    assert [picture.size for picture in hosts] == [(width, height)] * STEPS
    assert [picture.size for picture in ours] == [(2 * width, 2 * height)] * STEPS
    model = tiny_model()
    show = latent_preview.get_previewer(
        model.load_device, model.model.latent_format
    ).decode_latent_to_preview
    # The last step ends where it foresees to end.
    last = model.get_model_object("latent_format").process_in(latents)
    for place, frame in enumerate((0, 1, 3, 4)):
        y, x = place // 2 * height, place % 2 * width
        tile = ours[-1].crop((x, y, x + width, y + height))
        assert (
            np.abs(np.asarray(tile).astype(int) - np.asarray(show(last[frame : frame + 1]))).max()
            <= 1
        )


@pytest.mark.parametrize("sample", [by_ksampler, by_custom_advanced])
def test_latents_are_those_without_a_preview(
    sample: Callable[[Any], Tensor], events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = sample(matched(2))
    assert [picture.size for _, _, picture in events[1::2]] == [(2 * SIZE[1], SIZE[0])] * STEPS
    monkeypatch.setattr(
        latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.NoPreviews
    )
    events.clear()
    assert torch.equal(sample(matched(2)), shown)
    assert events[-1] == (STEPS, STEPS, None)
    # Newer hosts leave out what comes too fast.
    assert set(events) <= {(step, STEPS, None) for step in range(1, STEPS + 1)}


def test_one_frame_and_previews_of_other_packs_are_left_to_the_host(
    events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = show_frames(tiny_model(), lambda *_: None)
    assert callback is not None
    callback(0, torch.zeros(1, 4, *SIZE), torch.zeros(1, 4, *SIZE), STEPS)
    monkeypatch.setattr(
        latent_preview.Latent2RGBPreviewer, "decode_latent_to_preview", lambda *_: None
    )
    callback(0, torch.zeros(2, 4, *SIZE), torch.zeros(2, 4, *SIZE), STEPS)
    assert not events
    assert show_frames(tiny_model(), None) is None
