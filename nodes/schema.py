"""What all nodes share: sockets, category, and schemas that load on every host with the V3 API."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..tokenflow_ops import spread

InversionSocket = io.Custom("TOKENFLOW_INVERSION")
FeaturesSocket = io.Custom("TOKENFLOW_FEATURES")
CorrespondencesSocket = io.Custom("TOKENFLOW_CORRESPONDENCES")
InjectionSocket = io.Custom("TOKENFLOW_INJECTION")

MOST_SHOWN = 64
CELL = 8  # pixels of a latent pixel's side in pictures of latents and features
MASKED = "the latents' noise mask is where the edit will be, unless the sampling node has a mask of its own"

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(
    name: str, display_name: str, description: str, aliases: list[str], **fields: Any
) -> io.Schema:
    """A node's schema with our prefix and category.

    What newer hosts know of is passed on to them: search aliases (since 0.10), and that what a node
    says is sent again when its result comes from the cache (since 0.19; before, only output nodes'
    words are).
    """
    newer = {"search_aliases": aliases, "has_intermediate_output": True}
    fields |= {name: value for name, value in newer.items() if name in _SCHEMA_FIELDS}
    return io.Schema(
        node_id=f"TokenFlow{name}",
        display_name=display_name,
        category="TokenFlow",
        description=description,
        **fields,
    )


def as_image(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Small pictures (N, 3, h, w) as an IMAGE (N, height, width, 3), every cell a sharp square."""
    return (
        torch.nn.functional.interpolate(frames.float(), (height, width), mode="nearest")
        .movedim(1, -1)
        .cpu()
    )


def shown_frames(total: int, most: int = MOST_SHOWN) -> torch.Tensor:
    """The frames that pictures for looking at show: all (with 0 for `most`), of a long clip so many
    spread over it. They would fill the memory.
    """
    return spread(total, most or total)


def preview(pictures: torch.Tensor, text: str) -> dict[str, Any]:
    """What a node shows of its work: a few pictures, and a line or two."""
    return {**ui.PreviewImage(pictures).as_dict(), **ui.PreviewText(text).as_dict()}


def lines(*texts: str) -> str:
    """What a node has to say, one thing below the other; empty ones are left out."""
    return "\n".join(filter(None, texts))


def said(*texts: str) -> ui.PreviewText:
    """The same as the node's text.

    Where there is nothing to say it is empty, so that nothing is left of an earlier run's.
    """
    return ui.PreviewText(lines(*texts))


def most_frames_input(default: int) -> Any:
    """How many frames a node for looking shows."""
    return io.Int.Input(
        "most_frames",
        default=default,
        min=0,
        max=100000,
        tooltip="Of a longer clip so many frames are shown, evenly spread over it. 0: all of them.",
    )


def noise_level_input(default: float) -> Any:
    """Which step of the schedule a node for looking shows."""
    return io.Float.Input(
        "noise_level",
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Which step of the schedule is shown: 0 is the cleanest, 1 the noisiest.",
    )


def step_at(noise_level: float, steps: int) -> int:
    """The step at a noise level, 0 for the cleanest of all steps and 1 for the noisiest."""
    return round((1 - noise_level) * (steps - 1))


def frames_per_pass_input() -> Any:
    """The batch size that every node which runs the model offers."""
    return io.Int.Input(
        "frames_per_pass",
        default=0,
        min=0,
        max=4096,
        optional=True,  # API prompts may leave it out
        tooltip="Frames in one model call. 0: as many as the host's memory estimate allows.",
    )
