"""Rerender-A-Video's constraints as a mode, against their plain formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.tokenflow_ops.baselines.fusion import motion_from_first

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    SOURCE,
    applied,
    built,
    call,
    edit,
    injection,
    invert,
    pictures,
    relative_error,
    tiny_model,
    untouched,
)
from ..once import once_a_module
from ..oracles.rerender import Rerender
from ..tiny_models import moving_clip

STEPS = 5  # the last of which is among the last fifth
SHARES = 0.4, 0.6  # of Plug-and-Play
FRAMES = 3
SIZE = 8, 8
MODE = "rerender"


@once_a_module
def matched(frames: int = FRAMES) -> Any:
    inversion = invert(tiny_model(), moving_clip(frames, *SIZE), steps=STEPS, refinement="none")[0]
    features = call(
        ExtractFeatures.execute,
        tiny_model(),
        inversion,
        "one per resolution",
        "one noise level",
        storage="memory",
    )[0]
    return built(features)


@once_a_module
def found(consistency: str = MODE, frames_per_pass: int = FRAMES) -> torch.Tensor:
    inputs = {
        "consistency": consistency,
        "frames_per_pass": frames_per_pass,
        "injection": call(PlugAndPlay.execute, *SHARES)[0],
    }
    return edit(correspondences=matched(), **inputs)


def test_the_mode_is_its_formula() -> None:
    inversion = matched().features.inversion
    prompts = SOURCE[0][0], POSITIVE[0][0], NEGATIVE[0][0]
    formula = Rerender(
        tiny_model(),
        inversion.latents,
        inversion.sigmas,
        *prompts,
        [[]] * STEPS,
        4.0,
        *SHARES,
        consistency=MODE,
    )
    motion = motion_from_first(pictures(FRAMES, SIZE).movedim(-1, 1), SIZE)
    formula.positions, formula.visible = motion.positions, motion.visible
    assert 0.2 < float(motion.visible.float().mean()) < 0.9
    assert relative_error(found(), tiny_model().model.process_latent_out(formula.run())) < 1e-4


def test_passes_of_any_size_give_the_same() -> None:
    assert relative_error(found(frames_per_pass=2), found()) < 1e-4


def test_it_differs_from_sparse_causal() -> None:
    assert relative_error(found("sparse-causal"), found()) > 0.01


def test_one_frame_is_the_plain_edit() -> None:
    """Its own colours are matched to themselves, up to rounding."""
    one = {"correspondences": matched(1), "injection": injection()}
    assert (
        relative_error(edit(consistency=MODE, **one), edit(consistency="per frame", **one)) < 1e-4
    )


def test_the_model_stays_as_it_was() -> None:
    with untouched(tiny_model()):
        edit(correspondences=matched(1), consistency=MODE)


@pytest.mark.parametrize("run", [edit, applied], ids=["Sampler", "Apply"])
@pytest.mark.parametrize(
    ("frames", "message"),
    [(None, "nothing, and the mode rerender"), (pictures(2), "2 images for 3")],
    ids=["none", "too few"],
)
def test_it_needs_the_source_frames(run: Any, frames: Any, message: str) -> None:
    with pytest.raises(NodeError, match=rf"input 'frames': {message}"):
        run(correspondences=matched(), consistency=MODE, frames=frames)


def test_other_modes_leave_the_source_frames_alone() -> None:
    plain = edit(correspondences=matched(1), consistency="per frame")
    assert torch.equal(
        edit(correspondences=matched(1), consistency="per frame", frames=pictures(2)), plain
    )
