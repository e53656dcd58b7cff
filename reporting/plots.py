"""Plots as IMAGE tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokenflow_ops.libraries import library

FEW = 4  # lines that a legend inside the axes does not hide
# Colours of what is least and most sure, which the colour-blind tell apart as well, and how much
# of the frame shows through.
SURENESS, FRAME_SHARE = "RdYlBu", 0.35


def plot_lines(
    lines: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    from_zero: bool = True,
    x: Sequence[int] | None = None,
) -> Tensor:
    """Plots one line for each name.

    Args:
        lines: The values of each line, by its name.
        x_label: What the horizontal axis shows.
        y_label: What the vertical axis shows.
        from_zero: Whether the vertical axis begins at zero, or lies around the values.
        x: Where the values stand, or None for 0, 1, 2, ...

    Returns:
        (1, 480, 800, 3) float32 in [0, 1].
    """
    figure, canvas, axes = _figure()
    colours = library("matplotlib").colormaps["tab10"].colors
    # Ten colours, then the same dashed.
    axes.set_prop_cycle(linestyle=["-"] * len(colours) + ["--"] * len(colours), color=colours * 2)
    for name, values in lines.items():
        axes.plot(
            range(len(values)) if x is None else x,
            values,
            label=name,
            marker="." if len(values) < 60 else "",
        )
    axes.set(xlabel=x_label, ylabel=y_label)
    if from_zero:
        # So that room is left above lines that lie close together.
        axes.update_datalim([(0.0, 0.0)], updatex=False)
        axes.autoscale_view()
        axes.set_ylim(bottom=0)
    legend = axes.legend() if len(lines) <= FEW else figure.legend(loc="outside right upper")
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are the user's
    axes.grid(alpha=0.3)
    return drawn(canvas)


def plot_timeline(
    keyframes: Sequence[Sequence[int]],
    frames: int,
    windows: Sequence[tuple[int, int]] = (),
    anchors: Sequence[int] = (),
) -> Tensor:
    """Plots a dot for every keyframe: frames from left to right, sampling steps downwards.

    Args:
        keyframes: Frame numbers of each step.
        frames: How many frames the clip has.
        windows: First frame and end of each window; every second one is shaded.
        anchors: Positions, among a step's keyframes, of those that all windows attend to.

    Returns:
        (1, 480, 800, 3) float32 in [0, 1].
    """
    figure, canvas, axes = _figure()
    for first, end in windows[1::2]:
        axes.axvspan(first - 0.5, end - 0.5, color="black", alpha=0.08, linewidth=0)
    size = max(2.0, min(36.0, 4000 / len(keyframes) / max(1, len(keyframes[0]))))
    chosen = {
        "keyframe": [i for i in range(len(keyframes[0])) if i not in anchors],
        "keyframe that all windows see": anchors,
    }
    for name, positions in chosen.items():
        dots = [(numbers[i], step) for step, numbers in enumerate(keyframes) for i in positions]
        if dots:
            axes.scatter(*zip(*dots, strict=True), s=size, label=name)
    axes.set(
        xlabel="frame",
        ylabel="sampling step",
        xlim=(-0.5, frames - 0.5),
        ylim=(len(keyframes) - 0.5, -0.5),
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(library("matplotlib").ticker.MaxNLocator(integer=True))
    if len(windows) > 1:
        figure.legend(loc="outside upper right", ncols=2)
    return drawn(canvas)


def heat_map(values: Tensor, frames: Tensor) -> Tensor:
    """Paints values on frames in grey: red for 0, over yellow to blue for 1.

    Args:
        values: (n, rows, columns) in [0, 1].
        frames: (n, h, w, 3) in [0, 1].

    Returns:
        (n, h, w, 3) in [0, 1].
    """
    sureness, painted = library("matplotlib").colormaps[SURENESS], torch.empty(frames.shape)
    # One by one, as all at once would be held several times.
    for one, value, frame in zip(painted, values, frames, strict=True):
        colours = torch.from_numpy(sureness(value.numpy())[..., :3]).float().movedim(-1, 0)
        enlarged = F.interpolate(colours[None], frame.shape[:2], mode="nearest")[0].movedim(0, -1)
        one.copy_(
            torch.lerp(enlarged, frame.mean(-1, keepdim=True).expand_as(enlarged), FRAME_SHARE)
        )
    return painted


def _figure() -> tuple[Any, Any, Any]:
    """A figure of 800 x 480 pixels with its canvas and axes."""
    matplotlib = library("matplotlib")
    figure = matplotlib.figure.Figure(figsize=(8, 4.8), dpi=100, layout="constrained")
    # No global figure, as the host is a server.
    canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    return figure, canvas, figure.add_subplot()


def drawn(canvas: Any) -> Tensor:
    """Returns the pixels of a figure's canvas, (1, H, W, 3) float32 in [0, 1]."""
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())[None].float() / 255
