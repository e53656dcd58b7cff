"""Plots as IMAGE tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from cycler import cycler
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

# Ten colours, then the same dashed.
STYLES = cycler(linestyle=["-", "--"]) * cycler(color=colormaps["tab10"].colors)
FEW = 4  # lines that a legend inside the axes does not hide


def plot_lines(lines: Mapping[str, Sequence[float]], x_label: str, y_label: str, from_zero: bool = True) -> Tensor:
    """One line per name over 0, 1, 2, ..., the axis from zero or around the values. Returns: (1, 480, 800, 3) float32 in [0, 1]."""
    figure = Figure(figsize=(8, 4.8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no global figure: the host is a server
    axes = figure.add_subplot()
    axes.set_prop_cycle(STYLES)
    for name, values in lines.items():
        axes.plot(values, label=name, marker="." if len(values) < 60 else "")
    axes.set(xlabel=x_label, ylabel=y_label)
    if from_zero:
        axes.set_ylim(bottom=0)
    legend = axes.legend() if len(lines) <= FEW else figure.legend(loc="outside right upper")
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are the user's
    axes.grid(alpha=0.3)
    return drawn(canvas)


def drawn(canvas: FigureCanvasAgg) -> Tensor:
    """A figure's pixels, (1, H, W, 3) float32 in [0, 1]."""
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())[None].float() / 255
