"""What was measured on several clips, as text, JSON and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .plots import plot_lines

# What a clip's line says of each measure.
TEXTS = {
    "warp_error": "warp error {:6.2f}e-3",
    "sharpness": "sharpness {:.4f}",
    "frame_similarity": "CLIP frames {:.4f}",
    "prompt_score": "CLIP prompt {:.4f}",
}
# The measures that are drawn: their axis, and whether it begins at zero.
PLOTS = {
    "warp_error": ("warp error x1e-3", True),
    "frame_similarity": ("CLIP similarity to the next frame", False),
    "prompt_score": ("CLIP similarity to the prompt", False),
}


@dataclass(frozen=True)
class Report:
    """Figures of clips of N frames.

    clips: by name of the clip and of the measure, (N,) or, of neighbouring frames, (N - 1,); NaN where nothing could be compared.
    Warp errors are x1e-3. visible: (N - 1,) the share of pixels that warp errors count. flow: who found the motion.
    """

    clips: Mapping[str, Mapping[str, Tensor]]
    visible: Tensor
    flow: str

    def text(self) -> str:
        """A line of means for each clip."""
        width = max(14, *map(len, self.clips))
        return "\n".join(
            f"{name:{width}} " + "   ".join(TEXTS[measure].format(float(values.nanmean())) for measure, values in figures.items())
            for name, figures in self.clips.items()
        )

    def json(self) -> str:
        """All values and their means; null for NaN, which JSON lacks."""
        clips = {name: {measure: _summary(values) for measure, values in figures.items()} for name, figures in self.clips.items()}
        return json.dumps({"flow": self.flow, "visible": _summary(self.visible), "clips": clips}, indent=1, allow_nan=False)

    def plots(self) -> Tensor:
        """(M, 480, 800, 3) in [0, 1]: a picture for each measure by frame, with a line for each clip."""
        measured = next(iter(self.clips.values()))
        pictures = []
        for measure, (axis, from_zero) in PLOTS.items():
            if measure in measured:
                lines = {name: figures[measure].tolist() for name, figures in self.clips.items()}
                pictures.append(plot_lines(lines, "frame", axis, from_zero))
        return torch.cat(pictures)


def _summary(values: Tensor) -> dict[str, float | list[float | None] | None]:
    return {"mean": _number(float(values.nanmean())), "values": [_number(value) for value in values.tolist()]}


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
