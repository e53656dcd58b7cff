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
KeyframesSocket = io.Custom("TOKENFLOW_KEYFRAMES")

MOST_SHOWN = 64
CELL = 8  # pixels of a latent pixel's side in pictures of latents and features
MASKED = (
    "the latents' noise mask is where the edit will be, "
    "unless the sampling node has a mask of its own"
)

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(
    name: str,
    display_name: str,
    description: str,
    aliases: list[str],
    advanced: tuple[str, ...] = (),
    **fields: Any,
) -> io.Schema:
    """Makes a node's schema with our prefix and category.

    What newer hosts know of is passed on to them: search aliases and inputs that are folded away
    (since 0.10), and that what a node says is sent again when its result comes from the cache
    (since 0.19; before, only what output nodes say is).

    Args:
        name: The node's id without our prefix.
        display_name: What the node is called in the editor.
        description: What the node does, for people.
        aliases: Other words by which the editor's search finds the node.
        advanced: Ids of inputs that a first edit does not need.
        **fields: More of `io.Schema`, such as inputs and outputs.

    Returns:
        The schema, for the node's `define_schema`.
    """
    newer = {"search_aliases": aliases, "has_intermediate_output": True}
    for given in fields["inputs"]:
        if given.id in advanced and hasattr(given, "advanced"):
            given.advanced = True
    fields |= {name: value for name, value in newer.items() if name in _SCHEMA_FIELDS}
    return io.Schema(
        node_id=f"TokenFlow{name}",
        display_name=display_name,
        category="TokenFlow",
        description=description,
        **fields,
    )


def as_image(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Makes an IMAGE of small pictures, every cell a sharp square.

    Args:
        frames: The small pictures, (N, 3, h, w).
        height: Of the IMAGE, in pixels.
        width: Of the IMAGE, in pixels.

    Returns:
        The IMAGE, (N, height, width, 3), float32 on the CPU.
    """
    return (
        torch.nn.functional.interpolate(frames.float(), (height, width), mode="nearest")
        .movedim(1, -1)
        .cpu()
    )


def shown_frames(total: int, most: int = MOST_SHOWN) -> torch.Tensor:
    """Chooses the frames that pictures for looking at show; all of a long clip would fill memory.

    Args:
        total: Frames of the clip.
        most: How many frames are shown at most, 0 for all.

    Returns:
        Numbers of the frames, in order: all of them, or `most` spread evenly over the clip.
    """
    return spread(total, most or total)


def preview(pictures: torch.Tensor, text: str) -> dict[str, Any]:
    """Makes what a node shows of its work: a few pictures, and a line or two.

    Args:
        pictures: An IMAGE, (N, H, W, 3).
        text: The lines.

    Returns:
        The `ui` of the node's output.
    """
    return {**ui.PreviewImage(pictures).as_dict(), **ui.PreviewText(text).as_dict()}


def lines(*texts: str) -> str:
    """Puts what a node has to say one thing below the other; empty ones are left out."""
    return "\n".join(filter(None, texts))


def said(*texts: str) -> ui.PreviewText:
    """Makes of what a node has to say the text that the node shows.

    Where there is nothing to say it is empty, so that nothing is left of an earlier run's.
    """
    return ui.PreviewText(lines(*texts))


def clip_input(
    name: str, display_name: str | None = None, *, tooltip: str, optional: bool = False
) -> Any:
    """Makes an input for a clip as an IMAGE or, read a few frames at a time, as a VIDEO.

    Args:
        name: The input's id.
        display_name: What it is called on the node, if not by its id.
        tooltip: What it is, for people.
        optional: Whether it may be left out.

    Returns:
        The input.
    """
    return io.MultiType.Input(
        name, [io.Image, io.Video], display_name, optional=optional, tooltip=tooltip
    )


def most_frames_input(default: int) -> Any:
    """Makes the input for how many frames a node for looking shows."""
    return io.Int.Input(
        "most_frames",
        default=default,
        min=0,
        max=100000,
        tooltip="Of a longer clip so many frames are shown, evenly spread over it. 0: all of them.",
    )


def noise_level_input(default: float) -> Any:
    """Makes the input for which step of the schedule a node for looking shows."""
    return io.Float.Input(
        "noise_level",
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Which step of the schedule is shown: 0 is the cleanest, 1 the noisiest.",
    )


def step_at(noise_level: float, steps: int) -> int:
    """Finds the step at a noise level.

    Args:
        noise_level: 0 for the cleanest of all steps, 1 for the noisiest.
        steps: Steps of the schedule.

    Returns:
        The step, 0 for the noisiest and `steps - 1` for the cleanest.
    """
    return round((1 - noise_level) * (steps - 1))


def frames_per_pass_input() -> Any:
    """Makes the input for the batch size, which every node that runs the model offers."""
    return io.Int.Input(
        "frames_per_pass",
        default=0,
        min=0,
        max=4096,
        optional=True,  # API prompts may leave it out
        tooltip="Frames in one model call. 0: as many as the host's memory estimate allows.",
    )


def checkpoints_input() -> Any:
    """Makes the switch that nodes with long runs offer; it is the last of their inputs."""
    return io.Boolean.Input(
        "checkpoints",
        default=False,
        optional=True,
        tooltip="Keeps every step on the disk until the graph is done: queued again after a crash "
        "or an interrupt, the same graph goes on where it was. Takes disk space, see the help.",
    )
