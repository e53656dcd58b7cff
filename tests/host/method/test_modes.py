"""Other systems' ways to keep frames together, each against its plain formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..helpers import (
    FRAMES,
    NEGATIVE,
    POSITIVE,
    SOURCE,
    STEPS,
    edit,
    injection,
    inverted,
    matched,
    relative_error,
    tiny_model,
)
from ..oracles.modes import FirstFrame, SparseCausal

MODES = {"first frame": FirstFrame, "sparse-causal": SparseCausal}


def wanted(mode: str, shares: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    inversion = inverted()[0]
    prompts = SOURCE[0][0], POSITIVE[0][0], NEGATIVE[0][0]
    formula = MODES[mode](
        tiny_model(),
        inversion.latents,
        inversion.sigmas,
        *prompts,
        [[]] * STEPS,
        4.0,
        *shares,
        consistency=mode,
    )
    return tiny_model().model.process_latent_out(formula.run())


@pytest.mark.parametrize("injected", [False, True], ids=["no injection", "plug-and-play"])
@pytest.mark.parametrize("mode", MODES)
def test_the_mode_is_its_formula(mode: str, injected: bool) -> None:
    inputs: dict[str, Any] = {"injection": injection()} if injected else {}
    assert (
        relative_error(
            edit(consistency=mode, **inputs), wanted(mode, (0.5, 0.8) if injected else (0.0, 0.0))
        )
        < 1e-4
    )


@pytest.mark.parametrize("mode", MODES)
def test_passes_of_any_size_give_the_same(mode: str) -> None:
    inputs = {"consistency": mode, "injection": injection()}
    whole = edit(frames_per_pass=FRAMES, **inputs)
    assert relative_error(edit(frames_per_pass=2, **inputs), whole) < 1e-4


def test_the_modes_differ() -> None:
    found = [edit(consistency=mode) for mode in (*MODES, "per frame", "joint attention")]
    assert all(
        relative_error(one, other) > 0.01 for i, one in enumerate(found) for other in found[:i]
    )


@pytest.mark.parametrize("mode", MODES)
def test_one_frame_is_the_plain_host(mode: str) -> None:
    one = {"correspondences": matched(1, (8, 8))}
    assert (
        relative_error(edit(consistency=mode, **one), edit(consistency="per frame", **one)) < 1e-5
    )
