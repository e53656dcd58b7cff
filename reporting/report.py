"""What was measured on several clips, as text, JSON and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .plots import plot_lines
from .tables import Cell, draw_table

# Clips that are no edits: what gives the motion, and the floor below which no edit can be.
SOURCE, FLOOR = "source", "reconstruction"

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
# The table's columns: head, decimals and which value is the best. Sharpness is a guard against
# blur: more of it may be noise.
COLUMNS: dict[str, tuple[str, int, Callable[[Iterable[float]], float] | None]] = {
    "warp_error": ("warp error ×10⁻³ ↓", 2, min),
    "excess": ("excess ↓", 2, min),
    "prompt_score": ("CLIP prompt ↑", 3, max),
    "frame_similarity": ("CLIP frames ↑", 3, max),
    "sharpness": ("sharpness", 4, None),
}


@dataclass(frozen=True)
class Report:
    """Figures of clips of N frames.

    Attributes:
        clips: By name of the clip and of the measure, (N,) or, of neighbouring frames, (N - 1,);
            NaN where nothing could be compared. Warp errors are x1e-3.
        visible: The share of pixels that warp errors count, (N - 1,).
        flow: The optical flow that found the motion.
    """

    clips: Mapping[str, Mapping[str, Tensor]]
    visible: Tensor
    flow: str

    def text(self) -> str:
        """Writes a line of means for each clip."""
        width = max(14, *map(len, self.clips))
        return "\n".join(
            f"{name:{width}} "
            + "   ".join(
                TEXTS[measure].format(float(values.nanmean()))
                for measure, values in figures.items()
            )
            for name, figures in self.clips.items()
        )

    def json(self) -> str:
        """Writes all values and their means; null for NaN, which JSON lacks."""
        clips = {
            name: {measure: _summary(values) for measure, values in figures.items()}
            for name, figures in self.clips.items()
        }
        excess = {name: _number(value) for name, value in self.excess().items()}
        figures = {
            "flow": self.flow,
            "visible": _summary(self.visible),
            "clips": clips,
            "excess": excess,
        }
        return json.dumps(figures, indent=1, allow_nan=False)

    def excess(self) -> dict[str, float]:
        """Returns the edits' excess warp errors, the first edit's = 1.

        They are the mean warp errors above the floor's. Empty without a floor, or where the first
        edit is not above it.
        """
        errors = {
            name: float(figures["warp_error"].nanmean()) for name, figures in self.clips.items()
        }
        edits = [name for name in errors if name not in (SOURCE, FLOOR)]
        if FLOOR not in errors or not edits or not errors[edits[0]] > errors[FLOOR]:
            return {}
        return {
            name: (errors[name] - errors[FLOOR]) / (errors[edits[0]] - errors[FLOOR])
            for name in edits
        }

    def table(self) -> Tensor:
        """Draws the means as a table, laid out as in a paper.

        Edits stand below the clips that are none, their best values bold.

        Returns:
            (1, H, W, 3) in [0, 1].
        """
        excess = self.excess()
        means = {
            name: {measure: float(values.nanmean()) for measure, values in figures.items()}
            for name, figures in self.clips.items()
        }
        means = {
            name: figures | ({"excess": excess[name]} if name in excess else {})
            for name, figures in means.items()
        }
        columns = [
            column for column in COLUMNS if any(column in figures for figures in means.values())
        ]
        edits = {name: figures for name, figures in means.items() if name not in (SOURCE, FLOOR)}
        best = {column: _best(column, edits) for column in columns}
        bounds = [
            _row(name, columns, figures, {}) for name, figures in means.items() if name not in edits
        ]
        rows = [_row(name, columns, figures, best) for name, figures in edits.items()]
        return draw_table(["", *(COLUMNS[column][0] for column in columns)], [bounds, rows])

    def plots(self) -> Tensor:
        """Plots each measure by frame, with a line for each clip.

        Returns:
            A picture for each measure, (M, 480, 800, 3) in [0, 1].
        """
        measured = next(iter(self.clips.values()))
        pictures = []
        for measure, (axis, from_zero) in PLOTS.items():
            if measure in measured:
                lines = {name: figures[measure].tolist() for name, figures in self.clips.items()}
                pictures.append(plot_lines(lines, "frame", axis, from_zero))
        return torch.cat(pictures)


def _text(column: str, figures: Mapping[str, float]) -> str:
    value, decimals = figures.get(column, math.nan), COLUMNS[column][1]
    # With + 0.0 there is no "-0.00".
    return f"{round(value, decimals) + 0.0:.{decimals}f}" if math.isfinite(value) else "–"


def _best(column: str, edits: Mapping[str, Mapping[str, float]]) -> str | None:
    """The best value as it is written, so that equals are bold together.

    None if there is nothing to choose from.
    """
    choose = COLUMNS[column][2]
    values = [
        value for figures in edits.values() if math.isfinite(value := figures.get(column, math.nan))
    ]
    return _text(column, {column: choose(values)}) if choose and len(values) > 1 else None


def _row(
    name: str, columns: Iterable[str], figures: Mapping[str, float], best: Mapping[str, str | None]
) -> list[Cell]:
    texts = {column: _text(column, figures) for column in columns}
    return [(name, False), *((text, text == best.get(column)) for column, text in texts.items())]


def _summary(values: Tensor) -> dict[str, float | list[float | None] | None]:
    return {
        "mean": _number(float(values.nanmean())),
        "values": [_number(value) for value in values.tolist()],
    }


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
