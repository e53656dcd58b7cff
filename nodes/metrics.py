"""Video Consistency Metrics."""

from __future__ import annotations

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from torch import Tensor

from ..host.errors import NodeError
from ..host.plots import plot_lines
from ..tokenflow_ops.metrics import sharpness, source_motion, warp_errors
from .schema import schema

NAME = "Video Consistency Metrics"


class Metrics(io.ComfyNode):
    """Warp error and sharpness of edits beside the source's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Metrics",
            NAME,
            "Measures flicker: every frame against the next one moved back along the source's optical flow (warp error, lower is steadier), and sharpness beside it.",
            ["warp error", "temporal consistency", "flicker", "metrics"],
            inputs=[
                io.Image.Input("source", tooltip="The source frames: they give the motion."),
                io.Image.Input("edited", tooltip="The edited frames, as many and as large as the source's."),
                io.Image.Input("reference", optional=True, tooltip="Another edit to compare with, such as the per-frame one."),
                io.Image.Input(
                    "reconstruction",
                    optional=True,
                    tooltip="The source through VAE Encode and VAE Decode: the floor that no edit can pass.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="figures", tooltip="A line per clip: mean warp error x1e-3 and sharpness."),
                io.Image.Output(display_name="plot", tooltip="Warp error of every pair of neighbouring frames."),
            ],
        )

    @classmethod
    def execute(
        cls, source: Tensor, edited: Tensor, reference: Tensor | None = None, reconstruction: Tensor | None = None
    ) -> io.NodeOutput:
        clips = {"source": source, "reconstruction": reconstruction, "reference": reference, "edited": edited}
        frames = {name: _frames(name, clip, source) for name, clip in clips.items() if clip is not None}
        motion = []
        progress = ProgressBar(len(source) - 1)
        for pair in zip(frames["source"][:-1], frames["source"][1:], strict=True):
            model_management.throw_exception_if_processing_interrupted()
            motion += source_motion(torch.stack(pair))
            progress.update(1)
        errors = {name: warp_errors(clip, motion) for name, clip in frames.items()}
        lines = [
            f"{name:14} warp error {errors[name].nanmean():6.2f}e-3   sharpness {sharpness(clip).mean():.4f}"
            for name, clip in frames.items()
        ]
        plot = plot_lines({name: values.tolist() for name, values in errors.items()}, "frame", "warp error x1e-3")
        return io.NodeOutput("\n".join(lines), plot, ui=ui.PreviewText("\n".join(lines)))


def _frames(name: str, clip: Tensor, source: Tensor) -> Tensor:
    if len(clip) < 2:
        raise NodeError(NAME, name, f"{len(clip)} frame(s).", "Connect a clip of at least two frames.")
    if clip.shape[:3] != source.shape[:3]:
        raise NodeError(
            NAME,
            name,
            f"frames of shape {tuple(clip.shape[:3])}, the source's are {tuple(source.shape[:3])}.",
            "Connect clips of equal length and size.",
        )
    return clip[..., :3].movedim(-1, 1).float()
