"""Live preview of several frames while the host samples a clip; its own shows the first one."""

from __future__ import annotations

from typing import Any

import latent_preview
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor

from .measuring.reconstruction import spread_frames
from .progress import Callback

COLUMNS = 2


def show_frames(model: Any, callback: Callback | None) -> Callback | None:
    """The host's callback, called as ever, and after it a preview of frames spread over the clip in
    its picture's place.

    callback: what the host has made for the node that samples, or None where nothing is to be
    shown.
    """
    previewer = (
        None
        if callback is None
        else latent_preview.get_previewer(model.load_device, model.model.latent_format)
    )
    if callback is None or previewer is None:
        return callback
    progress = ProgressBar(1)

    def shown(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        callback(step, denoised, x, total)
        frames = spread_frames(len(denoised))
        pictures = (
            [previewer.decode_latent_to_preview(denoised[i : i + 1]) for i in frames.tolist()]
            if len(frames) > 1
            else []
        )
        if pictures and all(
            isinstance(picture, Image.Image) for picture in pictures
        ):  # packs that show clips give other things
            progress.update_absolute(
                step + 1, total, ("JPEG", _tiled(pictures), latent_preview.MAX_PREVIEW_RESOLUTION)
            )

    return shown


def _tiled(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size in rows of COLUMNS."""
    width, height = pictures[0].size
    tiled = Image.new("RGB", (COLUMNS * width, -(-len(pictures) // COLUMNS) * height))
    for i, picture in enumerate(pictures):
        tiled.paste(picture, (i % COLUMNS * width, i // COLUMNS * height))
    return tiled
