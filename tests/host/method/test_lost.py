"""An inversion that has lost the source is called that, with the likely cause, by the nodes that
see it; others are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.looking.reconstruction import CheckReconstruction

from ..helpers import NEGATIVE, SOURCE, Decoder, call, tiny_model
from ..tiny_models import moving_clip

STEPS = 10
PREDICTS_V = "v_prediction"


def discrete(kind: str, zero_snr: bool = False) -> Any:
    return ModelSamplingDiscrete().patch(tiny_model(), kind, zero_snr)[0]


def edm(kind: str, highest: float) -> Any:
    return ModelSamplingContinuousEDM().patch(tiny_model(), kind, highest, 0.002)[0]


def inverted(model: Any, **inputs: Any) -> tuple[Any, str]:
    """An inversion, and what DDIM Invert Video says."""
    with torch.inference_mode():
        out = InvertVideo.execute(
            model,
            moving_clip(2, 8, 8),
            **{"positive": SOURCE, "steps": STEPS, "refinement": "none", **inputs},
        )
    return out.args[0], "\n".join(out.ui.as_dict()["text"])


def decibels(text: str) -> float:
    """The lowest frame's."""
    return float(re.findall(r"latents .*\(lowest of 2: (-?[\d.]+)\)", text)[0])


HIGH: dict[str, Callable[[], Any]] = {
    "zero-terminal SNR": lambda: discrete(PREDICTS_V, zero_snr=True),
    "EDM to 500, as CosXL": lambda: edm(PREDICTS_V, 500),
    "EDM to 120": lambda: edm("edm", 120),
}


@pytest.mark.parametrize("name", HIGH)
def test_noise_levels_that_leave_nothing_of_the_source_are_the_cause_and_the_depth_told_leaves_them_out(  # noqa: E501
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    inversion, text = inverted(HIGH[name]())
    assert decibels(text) < 0
    cause = re.search(
        r"LOST: in [12] of 2 frames .* Likely cause: noise levels up to (\d+), .*; "
        r"depth ([\d.]+) stays below\.",
        text,
    )
    assert cause
    assert int(cause[1]) == round(float(inversion.sigmas[0])) > 100
    assert any(message.startswith("DDIM Invert Video: LOST: in ") for message in caplog.messages)
    lower, text = inverted(HIGH[name](), depth=float(cause[2]))
    assert 10 < lower.sigmas[0] <= 100
    assert "LOST" not in text or "noise levels" not in text


def test_an_inversion_on_the_same_levels_that_keeps_the_source_is_not_called_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for make in HIGH.values():
        _, text = inverted(make(), refinement="extrapolated")
        assert decibels(text) > 10
        assert "LOST" not in text
    assert not [message for message in caplog.messages if message.startswith("DDIM Invert Video")]


@pytest.mark.parametrize(
    ("model", "inputs", "cause"),
    [
        (lambda: discrete("eps"), {}, "predict something else"),
        (lambda: discrete(PREDICTS_V), {"cfg": 9.0, "negative": NEGATIVE}, "cfg 9; invert with 1"),
    ],
    ids=["prediction", "cfg"],
)
def test_other_causes(model: Callable[[], Any], inputs: dict[str, Any], cause: str) -> None:
    _, text = inverted(model(), **inputs)
    assert decibels(text) < 0
    assert cause in text
    assert "noise levels" not in text


def test_check_reconstruction_says_it_too(caplog: pytest.LogCaptureFixture) -> None:
    model = HIGH["zero-terminal SNR"]()
    inversion, text = inverted(model, check_reconstruction=False)
    assert "LOST" not in text
    shown = call(CheckReconstruction.execute, model, inversion, Decoder())[3]
    assert "LOST: in 2 of 2 frames" in shown
    assert any(message.startswith("Check Reconstruction: LOST") for message in caplog.messages)
    good, _ = inverted(model, refinement="extrapolated")
    assert "LOST" not in call(CheckReconstruction.execute, model, good, Decoder())[3]
