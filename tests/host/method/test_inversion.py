"""DDIM Invert Video: the extrapolated refinement against its oracle, and what the node says about
the reconstruction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy import model_management
from tokenflow_pack.nodes.inversion import InvertVideo
from torch import Tensor

from .. import tiny_transformers
from ..helpers import NEGATIVE, SOURCE, interrupted, relative_error, tiny_model, untouched, watched
from ..once import once_a_module
from ..oracles.inversion import invert_extrapolated, sample_back
from ..oracles.unet import epsilon
from ..tiny_models import moving_clip, random_conditioning

SIZE = 8, 10


pytestmark = pytest.mark.usefixtures("inference_mode")


def invert(frames: int = 2, model: Any = None, **inputs: Any) -> tuple[Any, str]:
    """The inversion and the text the node shows."""
    inputs = {"positive": SOURCE, "steps": 3, "check_reconstruction": False, **inputs}
    out = InvertVideo.execute(model or tiny_model(), moving_clip(frames, *SIZE), **inputs)
    return out.args[0], out.ui.as_dict()["text"][0]


def clean(frames: int) -> Tensor:
    return tiny_model().model.process_latent_in(moving_clip(frames, *SIZE)["samples"])


def decibels(ratio: float | Tensor) -> float:
    return float(10 * torch.as_tensor(ratio).log10())


def figures(text: str, of: str = "latents") -> tuple[float, float]:
    """Mean and lowest dB that a text tells of four frames: of their latents or, behind
    "reconstruction:", of their pictures.
    """
    mean, lowest = re.search(rf"{of} (-?[\d.]+) dB \(lowest of 4: (-?[\d.]+)\)", text).groups()
    return float(mean), float(lowest)


class ColourVAE:
    """Pictures (N, h, w, 3) from three latent channels; remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def decode(self, latents: Tensor) -> Tensor:
        self.given.append(latents)
        return torch.sigmoid(latents[:, :3].movedim(1, -1))


@pytest.mark.parametrize(
    ("steps", "depth", "iterations"),
    [(7, 1.0, 1), (4, 1.0, 0), (1, 1.0, 0), (2, 1.0, 1), (6, 0.5, 1), (5, 0.01, 1)],
    ids=["prime", "one call a step", "one step", "two steps", "half depth", "the last step alone"],
)
@pytest.mark.parametrize(
    ("refinement", "every"), [("extrapolated", 1), ("extrapolated, every other step", 2)]
)
def test_extrapolated_inversion_is_the_oracles(
    refinement: str, every: int, steps: int, depth: float, iterations: int
) -> None:
    inversion, _ = invert(steps=steps, depth=depth, refinement=refinement, iterations=iterations)
    assert len(inversion.sigmas) - 1 == max(1, round(steps * depth))
    wanted = invert_extrapolated(
        tiny_model(), clean(2), inversion.sigmas, SOURCE[0][0], iterations, every
    )
    for found, latents in zip(inversion.latents, wanted, strict=True):
        assert relative_error(found, latents) < 1e-4


@pytest.mark.parametrize(("steps", "depth"), [(40, 1.0), (41, 0.5)], ids=["whole", "half depth"])
def test_many_steps_are_inverted_in_pairs_as_by_the_oracle(steps: int, depth: float) -> None:
    calls: list[int] = []
    model = watched(tiny_model(), lambda args: calls.append(1))
    inversion, _ = invert(model=model, steps=steps, depth=depth)
    taken = len(inversion.sigmas) - 1
    pairs = (taken - 2 - math.ceil(0.4 * taken)) // 2
    assert len(calls) == taken - pairs + 1
    wanted = invert_extrapolated(
        tiny_model(), clean(2), inversion.sigmas, SOURCE[0][0], 0, pairs=True
    )
    for found, latents in zip(inversion.latents, wanted, strict=True):
        assert relative_error(found, latents) < 1e-4


def test_few_steps_and_more_iterations_are_made_one_by_one() -> None:
    calls: list[int] = []
    model = watched(tiny_model(), lambda args: calls.append(1))
    invert(model=model, steps=39)
    invert(model=model, steps=40, iterations=1)
    assert len(calls) == 39 + 3 + 2 * 40 + 3


def test_a_flow_models_steps_are_made_one_by_one() -> None:
    calls: list[int] = []
    model = watched(tiny_transformers.tiny_transformer("SD 3"), lambda args: calls.append(1))
    InvertVideo.execute(
        model,
        tiny_transformers.clip("SD 3", 1, 4, 4),
        tiny_transformers.prompt("SD 3", 1),
        scheduler="simple",
        steps=40,
        check_reconstruction=False,
    )
    assert len(calls) == 40 + 3


def test_what_each_refinement_costs_and_how_close_to_the_source_it_comes() -> None:
    calls: list[int] = []
    model = watched(tiny_model(), lambda args: calls.append(1))
    cost, found = {}, {}
    kinds = (
        ("none", 1),
        ("fixed point", 1),
        ("extrapolated", 0),
        ("extrapolated", 1),
        ("extrapolated, every other step", 0),
    )
    for refinement, iterations in kinds:
        calls.clear()
        inversion, _ = invert(
            model=model, steps=24, depth=0.5, refinement=refinement, iterations=iterations
        )
        cost[refinement, iterations] = len(calls)
        back = sample_back(tiny_model(), inversion.latents[0], inversion.sigmas, SOURCE[0][0])
        found[refinement, iterations] = relative_error(back, clean(2))
    asked = 7  # of 12 steps: the first two, then every other one
    assert list(cost.values()) == [12, 24, 12 + 3, 24 + 3, asked + 3]
    assert found["extrapolated", 1] < 0.5 * found["fixed point", 1]
    assert found["extrapolated", 0] < found["extrapolated, every other step", 0] < found["none", 1]


def test_the_new_refinement_is_the_default() -> None:
    assert torch.equal(
        invert()[0].latents, invert(refinement="extrapolated", iterations=0)[0].latents
    )


@once_a_module
def checked() -> tuple[Any, str, ColourVAE]:
    """Six frames inverted with the check, plainly, so that something is lost."""
    vae = ColourVAE()
    inversion, text = invert(6, refinement="none", check_reconstruction=True, vae=vae)
    return inversion, text, vae


def test_the_node_says_what_the_oracle_loses_on_four_frames_spread_over_the_clip() -> None:
    inversion, text, vae = checked()
    frames = [0, 2, 3, 5]
    wanted = inversion.latents[-1][frames]
    back = sample_back(tiny_model(), inversion.latents[0][frames], inversion.sigmas, SOURCE[0][0])
    ratios = [
        decibels(one.square().sum() / (two - one).square().sum())
        for one, two in zip(wanted, back, strict=True)
    ]
    assert figures(text) == pytest.approx((sum(ratios) / 4, min(ratios)), abs=0.06)
    process_out = tiny_model().model.process_latent_out
    error = ColourVAE().decode(process_out(back)) - ColourVAE().decode(process_out(wanted))
    quality = [decibels(1 / one.square().mean()) for one in error]
    assert figures(text, "reconstruction:") == pytest.approx(
        (sum(quality) / 4, min(quality)), abs=0.06
    )
    assert [len(latents) for latents in vae.given] == [4, 4]
    assert relative_error(vae.given[0], process_out(back)) < 1e-3
    torch.testing.assert_close(vae.given[1], process_out(wanted))


def test_only_the_frames_looked_at_are_sampled_back() -> None:
    rows: list[int] = []
    model = watched(tiny_model(), lambda args: rows.append(len(args["input"])))
    invert(6, model=model, refinement="none", check_reconstruction=True, steps=2)
    assert rows == [6, 6, 4, 4]
    rows.clear()
    invert(6, model=model, refinement="none", check_reconstruction=True, steps=1, frames_per_pass=3)
    assert rows == [3, 3, 3, 1]


def test_the_check_changes_nothing_and_can_be_left_out() -> None:
    inversion, text, _ = checked()
    without, short = invert(6, refinement="none")
    assert torch.equal(without.latents, inversion.latents)
    assert text.startswith(short)
    assert "\n" not in short


def test_each_frame_is_sampled_back_with_its_own_prompt_and_guidance() -> None:
    prompts = [[torch.cat([random_conditioning(seed)[0][0] for seed in range(5)]), {}]]
    inversion, text = invert(
        5,
        positive=prompts,
        negative=NEGATIVE,
        cfg=2.0,
        refinement="none",
        check_reconstruction=True,
        steps=2,
    )
    frames, ratios = [0, 1, 3, 4], []
    for frame in frames:
        x, source = inversion.latents[0][frame][None], inversion.latents[-1][frame]
        for high, low in zip(inversion.sigmas[:-1], inversion.sigmas[1:], strict=True):
            cond, uncond = (
                epsilon(tiny_model(), x, high, prompt, [frame])
                for prompt in (prompts[0][0][frame][None], NEGATIVE[0][0])
            )
            x = x + (low - high) * (uncond + 2 * (cond - uncond))
        ratios.append(decibels(source.square().sum() / (x[0] - source).square().sum()))
    assert figures(text) == pytest.approx((sum(ratios) / 4, min(ratios)), abs=0.06)


def raises(latents: Tensor) -> Tensor:
    raise RuntimeError("no such latents")


@pytest.mark.parametrize(
    ("decode", "said"),
    [
        (raises, "the VAE cannot decode them (RuntimeError: no such latents)"),
        (lambda latents: None, "the VAE cannot decode them"),
    ],
    ids=["refuses the latents", "returns nothing"],
)
def test_a_vae_of_another_kind_does_not_spoil_the_inversion(
    decode: Callable[[Tensor], Any], said: str
) -> None:
    vae = ColourVAE()
    vae.decode = decode
    _, text = invert(1, steps=1, check_reconstruction=True, vae=vae)
    assert said in text
    assert re.search(r"latents -?[\d.]+ dB signal to error", text)


def test_a_single_frame_has_one_figure() -> None:
    _, text = invert(1, steps=1, check_reconstruction=True, vae=ColourVAE())
    assert re.search(r"reconstruction: [\d.]+ dB PSNR", text)
    assert "lowest" not in text


def test_an_interrupt_during_the_check_ends_the_node_and_leaves_the_model_alone() -> None:
    rows: list[int] = []

    def see(args: dict[str, Any]) -> None:
        rows.append(len(args["input"]))
        if rows[-2:] == [4, 4]:
            model_management.interrupt_current_processing()

    with untouched(tiny_model()), interrupted():
        invert(
            6,
            model=watched(tiny_model(), see),
            refinement="none",
            check_reconstruction=True,
            steps=3,
        )
    assert rows == [6, 6, 6, 4, 4]


def test_an_interrupt_while_decoding_ends_the_node() -> None:
    def decode(latents: Tensor) -> Tensor:
        raise model_management.InterruptProcessingException

    vae = ColourVAE()
    vae.decode = decode
    with pytest.raises(model_management.InterruptProcessingException):
        invert(1, steps=1, check_reconstruction=True, vae=vae)
