"""Plots as IMAGE tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


def plot_lines(lines: Mapping[str, Sequence[float]], x_label: str, y_label: str, from_zero: bool = True) -> Tensor:
    """One line per name over 0, 1, 2, ..., the axis from zero or around the values. Returns: (1, 480, 800, 3) float32 in [0, 1]."""
    figure = Figure(figsize=(8, 4.8), dpi=100, layout="tight")
    canvas = FigureCanvasAgg(figure)  # no global figure: the host is a server
    axes = figure.add_subplot()
    for name, values in lines.items():
        axes.plot(values, label=name, marker="." if len(values) < 60 else "")
    axes.set(xlabel=x_label, ylabel=y_label)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())[None].float() / 255
