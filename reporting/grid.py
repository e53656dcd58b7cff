"""Clips side by side with their names below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..tokenflow_ops import spread
from ..tokenflow_ops.libraries import library

# In pixels. Captions of frames as small as the embedded model's shall be legible, those of large
# frames in proportion.
SMALLEST_FONT, FRAME_PER_FONT = 12, 20
SHRUNK = 0.8  # how far the letters of a long name shrink before it is cut


def captioned_grid(clips: Mapping[str, Tensor], columns: int = 0) -> Tensor:
    """Lays out clips in a grid, each with its name below.

    Args:
        clips: By name (N, h, w, 3 or more) in [0, 1], all of one size.
        columns: Clips in a row; 0 for about as many as there are rows.

    Returns:
        (N, rows (h + bar), columns w, 3), cells without a clip black; the bar with the name has
        an even height.
    """
    count, height, width = next(iter(clips.values())).shape[:3]
    columns = min(columns or math.ceil(math.sqrt(len(clips))), len(clips))
    size = max(SMALLEST_FONT, height // FRAME_PER_FONT)
    bar = 2 * math.ceil(0.8 * size)
    rows = math.ceil(len(clips) / columns)
    grid = torch.zeros(count, rows * (height + bar), columns * width, 3)
    for i, (name, clip) in enumerate(clips.items()):
        top, left = i // columns * (height + bar), i % columns * width
        grid[:, top : top + height, left : left + width] = clip[..., :3]
        grid[:, top + height : top + height + bar, left : left + width] = caption(
            name, width, bar, size
        )
    return grid


def strip(clip: Tensor, moments: int) -> Tensor:
    """Puts frames of a clip side by side, spread evenly from the first to the last one.

    Args:
        clip: (N, h, w, c).
        moments: How many frames, fewer where N is.

    Returns:
        (1, h, moments w, c).
    """
    return torch.cat(list(clip[spread(len(clip), moments)]), dim=1)[None]


@lru_cache(maxsize=64)
def caption(name: str, width: int, height: int, size: int) -> Tensor:
    """Writes a name in white on black.

    A name too wide for the picture shrinks, and then ends in an ellipsis.

    Args:
        name: The name.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        size: Of the letters, in pixels.

    Returns:
        (height, width, 3) in [0, 1].
    """
    # With other characters the layout of text fails.
    name = "".join(filter(str.isprintable, name))
    # The font comes with matplotlib.
    font = ImageFont.truetype(library("matplotlib").font_manager.findfont("DejaVu Sans"), size)
    place = width - size // 2
    if font.getlength(name) > place:
        font = font.font_variant(size=round(SHRUNK * size))
    if font.getlength(name) > place:
        name = next(
            (
                cut
                for n in range(len(name), 0, -1)
                if font.getlength(cut := name[:n].rstrip() + "…") <= place
            ),
            "…",
        )
    picture = Image.new("L", (width, height))
    ImageDraw.Draw(picture).text((width / 2, height / 2), name, font=font, fill=255, anchor="mm")
    return torch.from_numpy(np.asarray(picture).copy())[..., None].expand(-1, -1, 3).float() / 255
