"""Video Consistency Metrics."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.clip_scores import frame_embedding, prompt_embedding
from ..host.errors import NodeError
from ..host.measure import measure
from ..host.optical_flow import DIS, flow_choices, load_flow
from .schema import schema

NAME = "Video Consistency Metrics"
MORE_EDITS = ("edit_3", "edit_4", "edit_5", "edit_6")


class Metrics(io.ComfyNode):
    """Warp error, sharpness and CLIP's similarities of edits beside the source's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Metrics",
            NAME,
            "Measures flicker: every frame against the next one moved back along the source's optical flow (warp error, lower is steadier). "
            "Beside it sharpness and, with CLIP, how alike neighbouring frames are and how well they show the prompt.",
            ["warp error", "temporal consistency", "flicker", "metrics", "optical flow", "RAFT", "CLIP score"],
            inputs=[
                io.Image.Input("source", tooltip="The source frames: they give the motion."),
                io.Image.Input("edited", tooltip="The edited frames, as many and as large as the source's."),
                io.Image.Input("reference", optional=True, tooltip="Another edit to compare with, such as the per-frame one."),
                io.Image.Input(
                    "reconstruction",
                    optional=True,
                    tooltip="The source through VAE Encode and VAE Decode: the floor that no edit can pass.",
                ),
                *(io.Image.Input(socket, optional=True, tooltip="One more edit to compare with.") for socket in MORE_EDITS),
                *cls._options(),
            ],
            outputs=[
                io.String.Output(
                    display_name="figures", tooltip="A line per clip: mean warp error x1e-3 and sharpness, with CLIP the similarities."
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Warp error of every pair of neighbouring frames; with CLIP a further picture for each similarity.",
                ),
                io.String.Output(
                    display_name="json",
                    tooltip="Means and single values of every clip, warp errors x1e-3, and the share of pixels that were compared.",
                ),
            ],
        )

    @classmethod
    def _options(cls) -> list[Any]:
        return [
            io.String.Input(
                "names",
                default="",
                optional=True,
                tooltip="What to call the edits in text and plot, separated by commas, in the order edited, reference, edit_3 and so on. Empty: as the inputs.",
            ),
            io.Combo.Input(
                "flow",
                options=flow_choices(),
                default=DIS,
                optional=True,
                tooltip="What finds the source's motion. DIS needs no weights. RAFT, which the paper takes, needs torchvision's file in models/optical_flow.",
            ),
            io.ClipVision.Input("clip_vision", optional=True, tooltip="CLIP's vision model, to measure how alike neighbouring frames are."),
            io.Clip.Input(
                "clip",
                optional=True,
                tooltip="The text encoder of the same CLIP, to score the prompt: ViT-H's (SD 2.x) or ViT-bigG's (SDXL). SD 1.x's does not fit.",
            ),
            io.String.Input(
                "prompt", default="", multiline=True, optional=True, tooltip="What the edits shall show. Needs clip and clip_vision."
            ),
        ]

    @classmethod
    def execute(
        cls,
        source: Tensor,
        edited: Tensor,
        reference: Tensor | None = None,
        reconstruction: Tensor | None = None,
        names: str = "",
        flow: str = DIS,
        clip_vision: Any = None,
        clip: Any = None,
        prompt: str = "",
        **more_edits: Tensor | None,
    ) -> io.NodeOutput:
        clips = {"source": source, "reconstruction": reconstruction, "reference": reference, "edited": edited, **more_edits}
        frames = {socket: _frames(socket, clip, source) for socket, clip in clips.items() if clip is not None}
        report = measure(
            _named(frames, names),
            load_flow(NAME, "flow", flow),
            flow,
            None if clip_vision is None else frame_embedding(NAME, "clip_vision", clip_vision),
            _prompt(clip_vision, clip, prompt),
        )
        return io.NodeOutput(report.text(), report.plots(), report.json(), ui=ui.PreviewText(report.text()))


def _frames(socket: str, clip: Tensor, source: Tensor) -> Tensor:
    """An IMAGE (N, h, w, C) as (N, 3, h, w). Raises: NodeError unless it has two frames and the source's size."""
    if len(clip) < 2:
        raise NodeError(NAME, socket, f"{len(clip)} frame(s).", "Connect a clip of at least two frames.")
    if clip.shape[:3] != source.shape[:3]:
        raise NodeError(
            NAME,
            socket,
            f"frames of shape {tuple(clip.shape[:3])}, the source's are {tuple(source.shape[:3])}.",
            "Connect clips of equal length and size.",
        )
    return clip[..., :3].movedim(-1, 1).float()


def _named(frames: dict[str, Tensor], names: str) -> dict[str, Tensor]:
    """The clips under the names that the user gave the edits. Raises: NodeError for names too many, or twice the same."""
    edits = [socket for socket in ("edited", "reference", *MORE_EDITS) if socket in frames]
    given = [name.strip() for name in names.split(",")] if names.strip() else []
    if len(given) > len(edits):
        raise NodeError(NAME, "names", f"{len(given)} names for {len(edits)} edits.", "Give as many names as edits are connected, or none.")
    called = dict(zip(edits, given, strict=False))
    named = {called.get(socket) or socket: clip for socket, clip in frames.items()}
    if len(named) < len(frames):
        raise NodeError(
            NAME, "names", f"a name twice among {', '.join(given)}.", "Give every edit a name of its own, none of another input."
        )
    return named


def _prompt(clip_vision: Any, clip: Any, prompt: str) -> Tensor | None:
    """The embedded prompt, if one shall be scored. Raises: NodeError if anything for it is missing or does not fit."""
    if clip is None and not prompt.strip():
        return None
    for socket, missing in (("clip", clip is None), ("clip_vision", clip_vision is None), ("prompt", not prompt.strip())):
        if missing:
            remedy = "A score of the prompt takes clip, clip_vision and the prompt; leave clip and prompt empty for none."
            raise NodeError(NAME, socket, "nothing there.", remedy)
    return prompt_embedding(NAME, "clip", clip, prompt, clip_vision)
