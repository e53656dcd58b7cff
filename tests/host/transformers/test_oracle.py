"""Transformers through the pack's nodes against formulas that know their weights alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling import Sampler
from tokenflow_pack.tokenflow_ops import ATTENTION, DEEP_FEATURES
from torch import Tensor

from ..helpers import call, relative_error
from ..once import once_a_module
from ..oracles import transformers as oracle
from ..tiny_transformers import clip, prompt, tiny_transformer

NETWORKS = {
    "SD 3": oracle.SD3,
    "SD 3.5 medium": oracle.SD3,
    "Flux": oracle.Flux,
    "Z-Image": oracle.ZImage,
}
# Tokens that make no multiple of 32: 5 x 6 of 2 x 2 latent pixels.
FRAMES, HEIGHT, WIDTH, STEPS, CFG, INTERVAL = 5, 10, 12, 3, 3.0, 2
SOURCE, POSITIVE, NEGATIVE = 1, 2, 3


@once_a_module
def network(name: str) -> Any:
    return NETWORKS[name](tiny_transformer(name).model.diffusion_model.state_dict())


def read(name: str, seed: int) -> oracle.Prompt:
    tokens, extras = prompt(name, seed)[0]
    pooled = extras.get("pooled_output")
    return oracle.Prompt(tokens[0], None if pooled is None else pooled[0])


@once_a_module
def inverted(name: str) -> Any:
    return call(
        InvertVideo.execute,
        tiny_transformer(name),
        clip(name, FRAMES, HEIGHT, WIDTH),
        prompt(name, SOURCE),
        steps=STEPS,
        scheduler="simple",
        refinement="fixed point",
        iterations=1,
        check_reconstruction=False,
    )[0]


@once_a_module
def matched(name: str) -> Any:
    features = call(ExtractFeatures.execute, tiny_transformer(name), inverted(name))[0]
    return call(
        BuildCorrespondences.execute, features, keyframe_interval=INTERVAL, backend="torch"
    )[0]


def inner(blocks: tuple[str, ...]) -> tuple[str, ...]:
    """All but the first two and the last sixth."""
    return blocks[2 : len(blocks) - math.ceil(len(blocks) / 6)]


def oracle_edit(name: str, propagation: str) -> Tensor:
    """The edited latents in the model's own space."""
    net, inversion = network(name), inverted(name)
    deep = inner(net.blocks) if propagation == DEEP_FEATURES else ()
    x = inversion.latents[0]
    for index, step in enumerate(matched(name).steps):
        sigma, following = (float(level) for level in inversion.sigmas[index : index + 2])
        keyframes = step.keyframes.tolist()
        between = torch.tensor([i for i in range(FRAMES) if i not in keyframes])
        near, layer = step.near.of(between), next(iter(matched(name).features.shapes))
        asked = index, layer, between
        weight, tokens = matched(name).weight(*asked), matched(name).tokens(*asked)
        matches = oracle.Matches(near.past, near.future, weight, *tokens)
        rows = []
        for seed in (POSITIVE, NEGATIVE):
            velocity = torch.zeros_like(x)
            found, bank = oracle.keyframes_velocity(
                net, [x[i] for i in keyframes], sigma, read(name, seed), deep
            )
            velocity[keyframes] = torch.stack(found)
            velocity[between] = torch.stack(
                oracle.frames_velocity(
                    net, list(x[between]), sigma, read(name, seed), bank, matches, deep
                )
            )
            rows.append(x - sigma * velocity)
        denoised = rows[1] + CFG * (rows[0] - rows[1])
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


@pytest.mark.parametrize("name", NETWORKS)
def test_inverted_latents_are_the_oracles(name: str) -> None:
    inversion = inverted(name)
    clean = tiny_transformer(name).model.process_latent_in(
        clip(name, FRAMES, HEIGHT, WIDTH)["samples"]
    )
    wanted = oracle.invert(network(name), clean, inversion.sigmas, read(name, SOURCE), 1)
    assert inversion.sigmas[0] == 1, "the schedule begins at pure noise"
    assert relative_error(inversion.latents, wanted) < 1e-5


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
@pytest.mark.parametrize("name", NETWORKS)
def test_edited_latents_are_the_oracles(name: str, propagation: str) -> None:
    found = call(
        Sampler.execute,
        tiny_transformer(name),
        prompt(name, POSITIVE),
        prompt(name, NEGATIVE),
        matched(name),
        cfg=CFG,
        propagation=propagation,
        carry_until=0.0,
    )[0]["samples"]
    found = tiny_transformer(name).model.process_latent_in(found)
    assert relative_error(found, oracle_edit(name, propagation)) < 1e-5
