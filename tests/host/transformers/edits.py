"""Small clips inverted, matched and edited with the narrow transformers, for several tests."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import torch
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling.sampler import Sampler
from torch import Tensor

from ..helpers import built, call
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
    return built(features, interval)


def matched_by(model: Any, name: str) -> Any:
    """Matches that are all made with one model, of whatever weights and patches."""
    inversion = call(
        InvertVideo.execute,
        model,
        clip(name, FRAMES, *SIZE),
        prompt(name, SOURCE),
        steps=STEPS,
        scheduler="simple",
        check_reconstruction=False,
    )[0]
    features = call(ExtractFeatures.execute, model, inversion)[0]
    return built(features)


@once_a_session
def copies(name: str) -> Any:
    """Matches of a clip whose frames are one picture: edited together they are what the host makes
    of one.
    """
    latents = torch.cat([clip(name, 1, *SIZE)["samples"]] * FRAMES)
    inversion = call(
        InvertVideo.execute,
        tiny_transformer(name),
        {"samples": latents},
        prompt(name, SOURCE),
        steps=STEPS,
        scheduler="simple",
        check_reconstruction=False,
    )[0]
    features = call(ExtractFeatures.execute, tiny_transformer(name), inversion)[0]
    return built(features)


def edited(name: str, model: Any = None, positive: Any = POSITIVE, **inputs: Any) -> Tensor:
    inputs = {
        "cfg": CFG,
        "carry_until": 0.0,
        "correspondences": matched(name),
        "positive": prompt(name, positive) if isinstance(positive, int) else positive,
        "negative": prompt(name, NEGATIVE),
        **inputs,
    }
    return call(Sampler.execute, model or tiny_transformer(name), **inputs)[0]["samples"]


def plain(
    name: str,
    frames: int = FRAMES,
    model: Any = None,
    correspondences: Any = None,
    positive: Any = None,
    negative: Any = None,
    cfg: float = CFG,
) -> Tensor:
    """The host's own sampling of the first frames from the inverted latents: they are the noise of
    an empty latent.
    """
    model = model or tiny_transformer(name)
    inversion = (correspondences or matched(name, frames)).features.inversion
    start = inversion.latents[0, :frames]
    start = start.unsqueeze(2) if name == "Qwen-Image" else start
    latents = model.get_model_object("latent_format")
    start = latents.process_in(latents.process_out(start))  # as through a socket
    empty = latents.process_out(torch.zeros_like(start))
    with torch.inference_mode():
        found: Tensor = comfy.sample.sample_custom(
            model,
            start / inversion.sigmas[0],
            cfg,
            comfy.samplers.sampler_object("euler"),
            inversion.sigmas,
            positive or prompt(name, POSITIVE),
            negative or prompt(name, NEGATIVE),
            empty,
            seed=0,
        )
    return found
