"""Small clips inverted, matched and edited with the narrow transformers, for several tests."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import torch
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling import Sampler
from torch import Tensor

from ..helpers import call
from ..once import once_a_session
from ..tiny_transformers import clip, prompt, tiny_transformer

FRAMES, SIZE, STEPS, CFG = 3, (6, 8), 2, 3.0
SOURCE, POSITIVE, NEGATIVE = 1, 2, 3


@once_a_session
def inverted(name: str, frames: int = FRAMES, depth: float = 1.0) -> tuple[Any, ...]:
    """DDIM Invert Video's outputs."""
    return call(
        InvertVideo.execute,
        tiny_transformer(name),
        clip(name, frames, *SIZE),
        prompt(name, SOURCE),
        steps=STEPS,
        scheduler="simple",
        refinement="fixed point",
        iterations=10,
        depth=depth,
        check_reconstruction=False,
    )


@once_a_session
def matched(name: str, frames: int = FRAMES, depth: float = 1.0, interval: int = 2) -> Any:
    features = call(
        ExtractFeatures.execute, tiny_transformer(name), inverted(name, frames, depth)[0]
    )[0]
    return call(
        BuildCorrespondences.execute, features, keyframe_interval=interval, backend="torch"
    )[0]


def edited(name: str, model: Any = None, positive: int = POSITIVE, **inputs: Any) -> Tensor:
    inputs = {"cfg": CFG, "carry_until": 0.0, "correspondences": matched(name), **inputs}
    return call(
        Sampler.execute,
        model or tiny_transformer(name),
        prompt(name, positive),
        prompt(name, NEGATIVE),
        **inputs,
    )[0]["samples"]


def plain(name: str, frames: int = FRAMES, depth: float = 1.0) -> Tensor:
    """The host's own sampling from the inverted latents: they are the noise of an empty latent."""
    inversion, noisy, _ = inverted(name, frames, depth)
    model = tiny_transformer(name)
    start = model.get_model_object("latent_format").process_in(noisy["samples"])
    empty = model.get_model_object("latent_format").process_out(torch.zeros_like(start))
    with torch.inference_mode():
        found: Tensor = comfy.sample.sample_custom(
            model,
            start / inversion.sigmas[0],
            CFG,
            comfy.samplers.sampler_object("euler"),
            inversion.sigmas,
            prompt(name, POSITIVE),
            prompt(name, NEGATIVE),
            empty,
            seed=0,
        )
    return found
