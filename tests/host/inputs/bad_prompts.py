"""Bad input: prompts."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from comfy.controlnet import ControlBase

from ..helpers import POSITIVE, SOURCE
from ..small import inverted
from ..tiny_models import SDXL, SIZES, moving_clip
from .bad_input import (
    CHECK,
    CLIP,
    EXTRACT,
    FIND_MASK,
    INVERT,
    LOAD,
    SAMPLER,
    SAVE,
    TUNE,
    Row,
    run,
    wrong,
)
from .bad_models import sdxl


def prompt(embedding: Any = None, **options: Any) -> Any:
    """A CONDITIONING of one prompt."""
    return [[SOURCE[0][0] if embedding is None else embedding, options]]


def xl(positive: Any) -> Any:
    """A prompt for the small SDXL, whose pooled vector is as wide as its embedding."""
    clip = moving_clip(1, 8, 8, layout=SDXL)
    return lambda: run(INVERT, model=sdxl(), latents=clip, positive=positive)


ENCODER = "text encoder that belongs to the model"
NAN = torch.full((1, 4, 32), torch.nan)
ROWS = [
    wrong("no prompt in a CONDITIONING", INVERT, "positive", list, "no prompt", "CLIP Text Encode"),
    wrong("no CONDITIONING", SAMPLER, "positive", None, "nothing there", "Connect a CONDITIONING"),
    wrong(
        "a text in place of a CONDITIONING",
        SAMPLER,
        "negative",
        "blurry",
        "'blurry', which is no CONDITIONING",
        "CONDITIONING",
    ),
    wrong(
        "an embedding without options",
        TUNE,
        "positive",
        lambda: [[torch.zeros(1, 4, 32)]],
        "list, which is no",
        "CONDITIONING",
    ),
    wrong(
        "NaN in a prompt",
        SAMPLER,
        "positive",
        lambda: prompt(NAN),
        "NaN or infinite values in the prompt",
        "fp32-text-enc",
    ),
    wrong(
        "another text encoder's width",
        INVERT,
        "positive",
        lambda: prompt(torch.zeros(1, 4, 48)),
        "48 wide, the model takes 32",
        ENCODER,
    ),
    wrong(
        "another text encoder's width to find a mask with",
        FIND_MASK,
        "positive",
        lambda: prompt(torch.zeros(1, 4, 48)),
        "48 wide, the model takes 32",
        ENCODER,
    ),
    wrong(
        "the source prompt as the edit's",
        FIND_MASK,
        "positive",
        SOURCE,
        "says the same to the model",
        "Connect the edit prompt",
    ),
    wrong(
        "a prompt without a batch",
        TUNE,
        "positive",
        lambda: prompt(torch.zeros(4, 32)),
        r"shape \(4, 32\)",
        ENCODER,
    ),
    wrong(
        "a prompt of no tokens",
        SAMPLER,
        "positive",
        lambda: prompt(torch.zeros(1, 0, 32)),
        r"shape \(1, 0, 32\)",
        ENCODER,
    ),
    wrong(
        "a negative prompt of no rows",
        SAMPLER,
        "negative",
        lambda: prompt(torch.zeros(0, 4, 32)),
        r"\(0, 4, 32\)",
        ENCODER,
    ),
    Row(
        "SD's prompt on SDXL",
        INVERT,
        "positive",
        xl(prompt()),
        "nothing as the pooled prompt",
        ENCODER,
    ),
    Row(
        "a pooled prompt of another width",
        INVERT,
        "positive",
        xl(prompt(pooled_output=torch.zeros(1, SIZES))),
        "1536 wide, .* 32",
        ENCODER,
    ),
    wrong(
        "guidance without a negative prompt",
        INVERT,
        "negative",
        None,
        "nothing connected with cfg 3.0",
        "cfg to 1",
        cfg=3.0,
    ),
    wrong(
        "a check without its negative prompt",
        CHECK,
        "negative",
        list,
        "nothing connected with cfg 2.0",
        "cfg to 1",
        cfg=2.0,
    ),
    wrong("guidance away from nothing", SAMPLER, "negative", list, "no prompt", "CLIP Text Encode"),
    wrong(
        "several prompts to tune with",
        TUNE,
        "positive",
        [*SOURCE, *POSITIVE],
        "2 prompts combined",
        "one prompt",
    ),
    wrong(
        "a masked prompt to tune with",
        TUNE,
        "positive",
        lambda: prompt(mask=torch.ones(1, 8, 8)),
        "with mask",
        "plain prompt",
    ),
    wrong(
        "a prompt for a part of the steps to tune with",
        TUNE,
        "positive",
        lambda: prompt(start_percent=0.5),
        "start_percent",
        "plain",
    ),
    wrong(
        "an edit limited to an area",
        SAMPLER,
        "positive",
        lambda: prompt(area=(4, 4, 0, 0)),
        "area",
        "ConditioningSetMask",
    ),
    wrong(
        "another prompt than the stored",
        LOAD,
        "positive",
        POSITIVE,
        "not the one the source",
        "source prompt",
    ),
    wrong(
        "a stored prompt with a ControlNet",
        LOAD,
        "positive",
        lambda: prompt(control=ControlBase()),
        "'control'",
        "plain",
    ),
    Row(
        "a ControlNet to be stored",
        SAVE,
        "inversion",
        lambda: saved(prompt(control=ControlBase())),
        "'control'",
        "plain prompt",
    ),
    Row(
        "a source limited to an area",
        EXTRACT,
        "inversion",
        lambda: seen(prompt(area=(4, 4, 0, 0))),
        "area",
        "ConditioningSetMask",
    ),
    Row(
        "a source limited to some steps",
        EXTRACT,
        "model",
        lambda: seen(prompt(start_percent=0.99)),
        "did not run",
        "timestep ranges",
    ),
]


def saved(conditioning: Any) -> Any:
    return run(SAVE, inversion=dataclasses.replace(inverted(*CLIP)[0], conditioning=conditioning))


def seen(conditioning: Any) -> Any:
    return run(
        EXTRACT, inversion=dataclasses.replace(inverted(*CLIP)[0], conditioning=conditioning)
    )
