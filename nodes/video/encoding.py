"""Encode Video."""

from __future__ import annotations

import math
from typing import Any

import comfy.utils
from comfy_api.latest import io, ui
from torch import Tensor

from ...host.measuring.cropping import Size, describe_crop, size_of
from ...host.memory import room
from ...host.progress import Progress
from ...host.validation.errors import NodeError
from ...host.video.autoencoder import encode, factor_of
from ...host.video.reading import in_blocks, read_frames, video_facts
from ..inputs import checked
from ..schema import lines, schema

NAME = "Encode Video"
CROPS = CENTER, DISABLED = "center", "disabled"
LARGEST = 16384  # pixels of a side
MOST = 10**7  # frames


class EncodeVideo(io.ComfyNode):
    """Load Video's frames through VAE Encode, of which never more than a few are held."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "EncodeVideo",
            NAME,
            "Encodes a video's frames a few at a time, so that a clip of any length needs no more "
            "memory than its latents: in place of Get Video Components and VAE Encode.",
            ["vae encode video", "stream", "long video", "low memory", "video to latent"],
            advanced=("every", "crop"),
            inputs=[
                io.Video.Input("video", tooltip="From Load Video, or any other VIDEO."),
                io.Vae.Input("vae", tooltip="Of the model that the edit will be made with."),
                io.Int.Input(
                    "start",
                    default=0,
                    min=0,
                    max=MOST,
                    tooltip="The first frame to take, counted from 0.",
                ),
                io.Int.Input(
                    "count",
                    default=0,
                    min=0,
                    max=MOST,
                    tooltip="How many frames to take. 0: all to the end.",
                ),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="1 takes each frame, 2 every second one, and so on.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=LARGEST,
                    tooltip="Scales frames to so many pixels. 0: by the height, in the frame's "
                    "shape; with a height of 0, too, frames stay as they are.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=LARGEST,
                    tooltip="Scales frames to so many pixels. 0: by the width, in the frame's "
                    "shape; with a width of 0, too, frames stay as they are.",
                ),
                io.Combo.Input(
                    "crop",
                    options=list(CROPS),
                    default=CENTER,
                    tooltip="Where width and height have another shape than the frame. center: "
                    "takes its middle. disabled: stretches it.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latents",
                    tooltip="The frames, encoded: for DDIM Invert Video.",
                ),
                io.Float.Output(
                    display_name="frame_rate",
                    tooltip="Frames a second of what was taken, for Decode to Video.",
                ),
                io.Float.Output(
                    display_name="start_time",
                    tooltip="Where the first of them stands in the video, in seconds, for the "
                    "sound of Decode to Video.",
                ),
            ],
        )

    @classmethod
    @checked()
    def execute(
        cls,
        video: Any,
        vae: Any,
        start: int = 0,
        count: int = 0,
        every: int = 1,
        width: int = 0,
        height: int = 0,
        crop: str = CENTER,
    ) -> io.NodeOutput:
        facts = video_facts(NAME, "video", video)
        expected = math.ceil(max(0, facts.frames - start) / every)
        expected = min(count, expected) if count else expected
        progress, latents, size = Progress(max(1, expected)), None, (0, 0)
        found, factor = 0, factor_of(vae)
        for block in in_blocks(read_frames(NAME, "video", video, start, count, every)):
            size = wanted_size(size_of(block), width, height, factor)
            frames = scaled(block, size, crop)
            part = encode(NAME, vae, frames)
            latents = _with_room(latents, found, part, expected)
            latents[found : found + len(part)] = part
            found += len(part)
            progress(len(part))
        if latents is None:
            raise NodeError(
                NAME,
                "start" if start else "video",
                f"no frame from number {start} on.",
                f"Start earlier: the video says it has {facts.frames}."
                if start
                else "Connect a video with frames.",
            )
        used = size[0] // factor * factor, size[1] // factor * factor
        text = lines(
            f"{found} frames of {used[1]} x {used[0]}, "
            f"{latents[:found].numel() * 4 / 2**20:.1f} MiB of latents",
            describe_crop("video", size, used),
        )
        rate = facts.rate / every
        return io.NodeOutput(
            {"samples": latents[:found]},
            float(rate),
            float(start / facts.rate),
            ui=ui.PreviewText(text),
        )


def wanted_size(size: Size, width: int, height: int, factor: int) -> Size:
    """Finds the size that frames are scaled to.

    Args:
        size: The frames' height and width.
        width: What the user asks for, 0 for what fits the height.
        height: Likewise.
        factor: Pixels of a latent pixel's side; a side that fits the other is a multiple of it.

    Returns:
        Height and width.
    """
    if not width and not height:
        return size

    def fitting(side: int, given: int, other: int) -> int:
        return max(1, round(side * given / other / factor)) * factor

    return height or fitting(size[0], width, size[1]), width or fitting(size[1], height, size[0])


def scaled(frames: Tensor, size: Size, crop: str) -> Tensor:
    """Scales frames as the host's Scale Image does by lanczos.

    Args:
        frames: (n, H, W, 3).
        size: Height and width.
        crop: center or disabled.

    Returns:
        (n, height, width, 3).
    """
    if size == size_of(frames):
        return frames
    pixels = comfy.utils.common_upscale(frames.movedim(-1, 1), size[1], size[0], "lanczos", crop)
    return pixels.movedim(1, -1)


def _with_room(latents: Tensor | None, found: int, part: Tensor, expected: int) -> Tensor:
    """What the latents are written into: a file may have more frames than it says.

    latents: what was made before, with `found` frames in it. part: the next latents.
    """
    needed = found + len(part)
    if latents is not None and needed <= len(latents):
        return latents
    larger = room(
        NAME,
        max(needed, 2 * found, expected),
        *part.shape[1:],
        socket="video",
        what="the clip's latents",
        remedy="Make room on that disk, or take fewer frames or smaller ones.",
    )
    if latents is not None:
        larger[:found] = latents[:found]
    return larger
