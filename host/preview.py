"""Live preview of several frames while the host samples a clip; its own shows the first one."""

from __future__ import annotations

from typing import Any

import latent_preview
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor

from .families.latents import of_frames
from .measuring.reconstruction import spread_frames
from .progress import Callback

COLUMNS = 2


def show_frames(model: Any, callback: Callback | None) -> Callback | None:
    """Adds a preview of several frames to the host's callback.

    The callback is called as always. After it, frames spread over the clip are shown in place
    of its picture.

    Args:
        model: The ModelPatcher that is sampled.
        callback: What the host made for the node that samples, or None where nothing is
            to be shown.

    Returns:
        What the sampler is to call; `callback` itself where there is nothing to show or to
        show it with.
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
        frames, denoised = spread_frames(len(denoised)), of_frames(denoised)
        pictures = (
            [previewer.decode_latent_to_preview(denoised[i : i + 1]) for i in frames.tolist()]
            if len(frames) > 1
            else []
        )
        # Packs that show clips give other things than pictures.
        if pictures and all(isinstance(picture, Image.Image) for picture in pictures):
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
