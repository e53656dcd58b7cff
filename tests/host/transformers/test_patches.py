"""Transformers with what users put on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingFlux, ModelSamplingSD3
from tokenflow_pack.nodes.sampling.sampler import Sampler
from torch import Tensor

from ..helpers import call, relative_error
from ..tiny_transformers import prompt, tiny_transformer
from .edits import matched_by


def edited(model: Any, found: Any, name: str = "SD 3", **inputs: Any) -> Tensor:
    inputs = {"cfg": 3.0, "carry_until": 0.0, **inputs}
    prompts = prompt(name, 2), prompt(name, 3)
    return call(Sampler.execute, model, *prompts, found, **inputs)[0]["samples"]


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_patched_weight_is_sampled(strength: float) -> None:
    """As LoRA loaders put it on a model, which gets its own weights back."""
    model = tiny_transformer("SD 3")
    found = matched_by(model, "SD 3")
    name = "diffusion_model.joint_blocks.1.x_block.attn.qkv.weight"
    before = model.model.state_dict()[name].clone()
    generator = torch.Generator().manual_seed(0)
    more = 0.05 * torch.randn(before.shape, generator=generator)
    with_lora = model.clone()
    with_lora.add_patches({name: ("diff", (more,))}, strength)
    difference = relative_error(edited(with_lora, found), edited(model, found))
    assert 1e-4 * strength < difference < 1
    assert torch.equal(model.model.state_dict()[name], before)


def test_another_shift_is_another_schedule() -> None:
    for name, shifted in (
        ("SD 3", ModelSamplingSD3().patch(tiny_transformer("SD 3"), 1.0)[0]),
        ("Flux", ModelSamplingFlux().patch(tiny_transformer("Flux"), 1.15, 0.5, 1024, 1024)[0]),
    ):
        found = matched_by(shifted, name)
        assert found.features.inversion.sigmas[0] == 1
        assert torch.isfinite(edited(shifted, found, name)).all()
