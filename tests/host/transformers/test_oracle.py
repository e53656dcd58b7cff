"""Transformers through the pack's nodes against formulas that know their weights alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tokenflow_pack.nodes import presets
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.presets import BY_PRESET
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.tokenflow_ops import ATTENTION, DEEP_FEATURES
from tokenflow_pack.tokenflow_ops.editing import step as method
from torch import Tensor

from ..helpers import built, call, relative_error
from ..once import once_a_module
from ..oracles.transformers import method as oracle
from ..oracles.transformers.flux import Flux
from ..oracles.transformers.network import Network, Prompt
from ..oracles.transformers.qwen_image import QwenImage
from ..oracles.transformers.sd3 import SD3
from ..oracles.transformers.z_image import ZImage
from ..tiny_transformers import clip, prompt, tiny_transformer

NETWORKS = {
    "SD 3": SD3,
    "SD 3.5 medium": SD3,
    "Flux": Flux,
    "Z-Image": ZImage,
    "Qwen-Image": QwenImage,
}
# Tokens that make no multiple of 32: 5 x 6 of 2 x 2 latent pixels.
HEIGHT, WIDTH, PATCH, STEPS, CFG, INTERVAL = 10, 12, 2, 3, 3.0, 2
GRID = HEIGHT // PATCH, WIDTH // PATCH
SOURCE, POSITIVE, NEGATIVE = 1, 2, 3
# Keyframes each of which attends to four: two of its window, one before it, an anchor.
LONG, AT_MOST = 9, 4
WINDOWS: oracle.Windows = [2], [[0], [1, 2], [3, 4]], [[], [0], [2]]
ROUNDING = 1e-5
FIRST_STEP = 0.01  # of SD's schedule: the second step of any of them begins at less noise


@once_a_module
def network(name: str) -> Network:
    return NETWORKS[name](tiny_transformer(name).model.diffusion_model.state_dict())


def read(name: str, seed: int) -> Prompt:
    tokens, extras = prompt(name, seed)[0]
    pooled = extras.get("pooled_output")
    return Prompt(tokens[0], None if pooled is None else pooled[0])


def in_model_space(name: str, latent: dict[str, Tensor]) -> Tensor:
    latents: Tensor = tiny_transformer(name).model.process_latent_in(latent["samples"])
    return latents.squeeze(2) if latents.ndim == 5 else latents


@once_a_module
def inverted(name: str, frames: int) -> Any:
    return call(
        InvertVideo.execute,
        tiny_transformer(name),
        clip(name, frames, HEIGHT, WIDTH),
        prompt(name, SOURCE),
        steps=STEPS,
        scheduler="simple",
        refinement="fixed point",
        iterations=1,
        check_reconstruction=False,
    )[0]


@once_a_module
def matched(name: str, frames: int = 5) -> Any:
    features = call(ExtractFeatures.execute, tiny_transformer(name), inverted(name, frames))[0]
    return built(features, INTERVAL)


def edited(name: str, correspondences: Any, **inputs: Any) -> Tensor:
    inputs = {"cfg": CFG, **inputs}
    prompts = prompt(name, POSITIVE), prompt(name, NEGATIVE)
    found = call(Sampler.execute, tiny_transformer(name), *prompts, correspondences, **inputs)[0]
    return in_model_space(name, found)


def inner(blocks: tuple[str, ...]) -> tuple[str, ...]:
    """All but the first two and the last sixth."""
    return blocks[2 : len(blocks) - math.ceil(len(blocks) / 6)]


@dataclass
class Edit:
    """The edit written down step by step. carried: how many steps' pictures are the keyframes'.
    lean: whether every second step takes what the keyframes have left. guides: whether frames take
    their guidance; as by default only with deep features. changed: a step whose frames between
    keyframes are those of the step before, changed as by vote the keyframes are. merged: as of the
    oracle's `keyframes_velocity`.
    """

    name: str
    correspondences: Any
    deep: bool = False
    windows: oracle.Windows | None = None
    carried: int = 0
    lean: bool = False
    injected: bool = False
    guides: bool | None = None
    changed: int | None = None
    merged: oracle.Grid | None = None

    def __post_init__(self) -> None:
        self.net = network(self.name)
        self.inner = inner(self.net.blocks) if self.deep else ()
        self.frames = self.correspondences.features.inversion.frames
        self.kept: tuple[list[oracle.Left], oracle.Matches, Tensor] | None = None
        self.rows: list[Tensor] = []  # of the step before, by prompt

    def run(self) -> Tensor:
        """The edited latents in the model's own space."""
        inversion = self.correspondences.features.inversion
        x = inversion.latents[0]
        for step in range(STEPS):
            sigma, following = (float(level) for level in inversion.sigmas[step : step + 2])
            repeats, self.now = self.kept is not None, (inversion.latents[step], step, sigma)
            denoised = self.again(x) if repeats else self.denoised(x)
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    def denoised(self, x: Tensor) -> Tensor:
        """All frames of a step, with guidance."""
        _, step, sigma = self.now
        keyframes = self.correspondences.steps[step].keyframes.tolist()
        between = [i for i in range(self.frames) if i not in keyframes]
        rows, kept = [], []
        for seed in (POSITIVE, NEGATIVE):
            found, left = self.of_keyframes(x[keyframes], seed)
            velocity = torch.zeros_like(x)
            velocity[keyframes] = torch.stack(found)
            if step != self.changed:
                velocity[between] = self.of_frames(x, between, seed, left)
            rows.append(x - sigma * velocity)
            kept.append(left)
        whole = self.matches(torch.arange(self.frames))
        if step == self.changed:
            for row, earlier in zip(rows, self.rows, strict=True):
                change = whole.voted((row - earlier)[keyframes], PATCH)
                row[between] = (earlier + change)[between]
            return rows[1] + CFG * (rows[0] - rows[1])
        guides = self.deep if self.guides is None else self.guides
        if guides and step >= self.carried:
            differing = whole.voted((rows[1] - rows[0])[keyframes], PATCH)
            rows[1][between] = (rows[0] + differing)[between]
            if self.lean:
                self.kept = kept[0], whole, differing
        self.rows = rows
        denoised = rows[1] + CFG * (rows[0] - rows[1])
        return whole.pictures(denoised[keyframes], PATCH) if step < self.carried else denoised

    def again(self, x: Tensor) -> Tensor:
        """All frames with what the step before has kept."""
        assert self.kept is not None
        (left, matches, differing), self.kept = self.kept, None
        sigma, words = self.now[2], read(self.name, POSITIVE)
        velocity = oracle.frames_velocity(
            self.net, list(x), sigma, words, left, matches, self.inner
        )
        return x - sigma * torch.stack(velocity) + (1 - CFG) * differing

    def of_keyframes(self, x: Tensor, seed: int) -> tuple[list[Tensor], list[oracle.Left]]:
        noisy, step, sigma = self.now
        words, source = read(self.name, seed), []
        if self.windows:
            return oracle.keyframes_in_windows(
                self.net, list(x), sigma, words, self.windows, self.inner, self.merged
            )
        if self.injected:
            keyframes = self.correspondences.steps[step].keyframes
            own = read(self.name, SOURCE)
            source = [oracle.plain(self.net, frame, sigma, own)[1] for frame in noisy[keyframes]]
        return oracle.keyframes_velocity(
            self.net, list(x), sigma, words, self.inner, source=source, merged=self.merged
        )

    def of_frames(self, x: Tensor, frames: list[int], seed: int, left: list[oracle.Left]) -> Tensor:
        words, matches = read(self.name, seed), self.matches(torch.tensor(frames))
        return torch.stack(
            oracle.frames_velocity(
                self.net, list(x[frames]), self.now[2], words, left, matches, self.inner
            )
        )

    def matches(self, frames: Tensor) -> oracle.Matches:
        """As the pack has found them, which its own tests look at."""
        found, step = self.correspondences, self.now[1]
        near, layer = found.steps[step].near.of(frames), next(iter(found.features.shapes))
        asked = step, layer, frames
        return oracle.Matches(near.past, near.future, found.weight(*asked), *found.tokens(*asked))


@pytest.mark.parametrize("name", NETWORKS)
def test_inverted_latents_are_the_oracles(name: str) -> None:
    inversion = inverted(name, 5)
    clean = in_model_space(name, clip(name, 5, HEIGHT, WIDTH))
    wanted = oracle.invert(network(name), clean, inversion.sigmas, read(name, SOURCE), 1)
    assert inversion.sigmas[0] == 1, "the schedule begins at pure noise"
    assert relative_error(inversion.latents, wanted) < ROUNDING


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
@pytest.mark.parametrize("name", NETWORKS)
def test_edited_latents_are_the_oracles(name: str, propagation: str) -> None:
    found = edited(name, matched(name), propagation=propagation, carry_until=0.0)
    wanted = Edit(name, matched(name), deep=propagation == DEEP_FEATURES).run()
    assert relative_error(found, wanted) < ROUNDING


@pytest.mark.parametrize("name", NETWORKS)
def test_by_preset_frames_take_attentions_output_and_the_keyframes_guidance(name: str) -> None:
    found = edited(name, matched(name), carry_until=0.0)
    wanted = Edit(name, matched(name), guides=True).run()
    assert relative_error(found, wanted) < ROUNDING
    own = edited(name, matched(name), propagation=ATTENTION, carry_until=0.0)
    assert relative_error(found, own) > 100 * ROUNDING


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
@pytest.mark.parametrize("name", NETWORKS)
def test_many_keyframes_are_edited_in_windows_as_by_the_oracle(name: str, propagation: str) -> None:
    """And the first step's pictures are carried."""
    inputs = {"propagation": propagation, "attended_keyframes": AT_MOST}
    found = edited(name, matched(name, LONG), carry_until=FIRST_STEP, **inputs)
    deep = propagation == DEEP_FEATURES
    wanted = Edit(name, matched(name, LONG), deep, WINDOWS, carried=1).run()
    assert relative_error(found, wanted) < ROUNDING
    jointly = edited(name, matched(name, LONG), propagation=propagation, carry_until=FIRST_STEP)
    assert relative_error(found, jointly) > 100 * ROUNDING


@pytest.mark.parametrize("propagation", [BY_PRESET, DEEP_FEATURES])
@pytest.mark.parametrize("name", NETWORKS)
def test_keyframes_that_see_each_other_merged_are_the_oracles(
    name: str, propagation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In windows; text counts 1.3 and 1.6 times beside one and two others' merged tokens."""
    inputs = {"propagation": propagation, "carry_until": FIRST_STEP, "attended_keyframes": AT_MOST}
    whole = edited(name, matched(name, LONG), **inputs)
    monkeypatch.setattr(method, "MERGED_FROM", GRID[0] * GRID[1])
    found = edited(name, matched(name, LONG), **inputs)
    deep = propagation == DEEP_FEATURES
    guides = None if deep else True
    wanted = Edit(
        name, matched(name, LONG), deep, WINDOWS, carried=1, guides=guides, merged=GRID
    ).run()
    assert relative_error(found, wanted) < ROUNDING
    assert relative_error(found, whole) > 100 * ROUNDING


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_keyframes_take_the_sources_queries_and_keys_as_by_the_oracle(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    injection = call(PlugAndPlay.execute, 1.0, 0.0)[0]
    monkeypatch.setattr(method, "MERGED_FROM", GRID[0] * GRID[1])
    found = edited(name, matched(name), carry_until=0.0, injection=injection)
    wanted = Edit(name, matched(name), injected=True, guides=True, merged=GRID).run()
    assert relative_error(found, wanted) < ROUNDING


@pytest.mark.parametrize("name", NETWORKS)
def test_who_chooses_attentions_output_has_keyframes_that_see_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = edited(name, matched(name), propagation=ATTENTION)
    monkeypatch.setattr(method, "MERGED_FROM", 1)
    assert torch.equal(edited(name, matched(name), propagation=ATTENTION), whole)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_lean_edit_is_the_oracles(name: str) -> None:
    """The first step is carried, and the third takes what the second has kept."""
    inputs = {"propagation": DEEP_FEATURES, "preset": "lean", "carry_until": FIRST_STEP}
    found = edited(name, matched(name), **inputs)
    wanted = Edit(name, matched(name), deep=True, carried=1, lean=True).run()
    assert relative_error(found, wanted) < ROUNDING


@pytest.mark.parametrize("name", NETWORKS)
def test_by_preset_frames_of_every_second_late_step_take_the_keyframes_change(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the second step were late and close enough, so that the third is of that kind."""
    inputs = {"carry_until": FIRST_STEP}
    every = edited(name, matched(name), **inputs)
    late = replace(presets.TRANSFORMERS_REPEAT, first=FIRST_STEP, apart=1.0)
    monkeypatch.setattr(presets, "TRANSFORMERS_REPEAT", late)
    found = edited(name, matched(name), **inputs)
    wanted = Edit(name, matched(name), carried=1, guides=True, changed=2).run()
    assert relative_error(found, wanted) < ROUNDING
    assert relative_error(found, every) > 100 * ROUNDING
    lean = edited(name, matched(name), preset="lean", **inputs)
    assert torch.equal(lean, found), "lean carries attention's output, too"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_sources_queries_and_keys_are_injected_as_by_the_oracle(name: str) -> None:
    injection = call(PlugAndPlay.execute, 1.0, 0.0)[0]
    found = edited(name, matched(name), carry_until=0.0, injection=injection)
    wanted = Edit(name, matched(name), injected=True, guides=True).run()
    assert relative_error(found, wanted) < ROUNDING
    assert relative_error(found, edited(name, matched(name), carry_until=0.0)) > 100 * ROUNDING
