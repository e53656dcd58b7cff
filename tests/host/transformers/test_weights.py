"""Transformers whose weights are kept in few bits, through the host's loader: an edit is that of
the same numbers in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.sampling.sampler import Sampler
from torch import Tensor

from ..helpers import call, relative_error
from ..models import gguf_models
from ..tiny_transformers import LAYOUTS, prompt, weights
from .edits import matched_by

ROUNDING = 1e-4
FLOAT8 = torch.float8_e4m3fn
State = dict[str, Tensor]


@pytest.fixture
def _known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's detection knows a family's narrow layout: it would tell the wide one by width."""
    layout = LAYOUTS[name]
    family = getattr(comfy.supported_models, layout.family)
    monkeypatch.setattr(
        comfy.model_detection, "detect_unet_config", lambda *args, **more: dict(layout.settings)
    )
    monkeypatch.setattr(
        comfy.model_detection,
        "model_config_from_unet_config",
        lambda config, *args: family(config),
    )


def floats(name: str) -> State:
    return weights(LAYOUTS[name])[1]


@torch.inference_mode()
def loaded(state: State, **options: Any) -> Any:
    """As the host's nodes load it."""
    return comfy.sd.load_diffusion_model_state_dict(dict(state), options)


def float8(name: str) -> tuple[Any, State]:
    rounded = {key: weight.to(FLOAT8).float() for key, weight in floats(name).items()}
    return loaded(floats(name), dtype=FLOAT8), rounded


def scaled_float8(name: str) -> tuple[Any, State]:
    """Linear layers with a scale each, as published. The host rounds their biases as well."""
    network, numbers = weights(LAYOUTS[name])
    quantised: State = {"scaled_fp8": torch.zeros(0, dtype=FLOAT8), **numbers}
    for path, module in network.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        weight, bias = f"{path}.weight", f"{path}.bias"
        scale = numbers[weight].abs().max() / 448
        quantised[weight] = (numbers[weight] / scale).to(FLOAT8)
        quantised[f"{path}.scale_weight"] = scale
        numbers[weight] = quantised[weight].float() * scale
        if bias in numbers:
            numbers[bias] = quantised[bias] = numbers[bias].to(FLOAT8).float()
    return loaded(quantised), numbers


def gguf(name: str, kind: str = "Q4_0") -> tuple[Any, State]:
    path = Path(folder_paths.get_temp_directory(), f"{name}.gguf")
    gguf_models.write(path, floats(name), gguf_models.KINDS[kind])
    return gguf_models.load(gguf_models.read(path)), gguf_models.whole(gguf_models.read(path))


def edited(model: Any, name: str) -> tuple[Tensor, Tensor]:
    """The noisy end of the inversion, and the edit with Plug-and-Play, all made with one model."""
    found = matched_by(model, name)
    injection = call(PlugAndPlay.execute)[0]
    prompts = prompt(name, 2), prompt(name, 3)
    edit = call(Sampler.execute, model, *prompts, found, cfg=3.0, injection=injection)[0]
    return found.features.inversion.latents[0], edit["samples"]


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *((name, float8) for name in ("SD 3.5 medium", "Z-Image")),
        *((name, scaled_float8) for name in ("SD 3.5 medium", "Flux", "Z-Image", "Qwen-Image")),
        *((name, gguf) for name in ("Flux", "Qwen-Image")),
    ],
)
def test_an_edit_is_that_of_the_same_numbers_in_float32(name: str, kept: Any) -> None:
    model, numbers = kept(name)
    types = {weight.dtype for weight in model.model.diffusion_model.state_dict().values()}
    assert (torch.uint8 if kept is gguf else FLOAT8) in types
    plain = loaded(numbers, dtype=torch.float32)
    for found, wanted in zip(edited(model, name), edited(plain, name), strict=True):
        assert relative_error(found, wanted) < ROUNDING
