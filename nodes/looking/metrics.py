"""Video Consistency Metrics."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ...host.measuring.clip_scores import frame_embedding, prompt_embedding
from ...host.measuring.cropping import in_words
from ...host.measuring.measure import measure
from ...host.measuring.optical_flow import DIS, check_flow, flow_choices, load_flow
from ...host.validation.errors import NodeError
from ..inputs import UNCONNECTED, before_run, checked
from ..schema import clip_input, lines, schema
from .clips import called, check_names, edit_inputs, like_source, names_input, parsed

NAME = "Video Consistency Metrics"
NEEDS = ("kornia", "matplotlib")


class Metrics(io.ComfyNode):
    """Warp error, sharpness and CLIP's similarities of edits beside the source's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        first, second, *more = edit_inputs()
        return schema(
            "Metrics",
            NAME,
            "Measures flicker: every frame against the next, moved back along the source's "
            "optical flow (warp error, lower is steadier). Also sharpness and, with CLIP, "
            "likeness of neighbours and fit to the prompt.",
            [
                "warp error",
                "temporal consistency",
                "flicker",
                "metrics",
                "optical flow",
                "RAFT",
                "CLIP score",
            ],
            advanced=("flow",),
            inputs=[
                clip_input("source", tooltip="The source frames: they give the motion."),
                first,
                second,
                clip_input(
                    "reconstruction",
                    optional=True,
                    tooltip="The source through VAE Encode and VAE Decode: the "
                    "floor that no edit can pass.",
                ),
                *more,
                *cls._options(),
            ],
            outputs=[
                io.String.Output(
                    display_name="figures",
                    tooltip="A line per clip: mean warp error x1e-3 and sharpness, "
                    "with CLIP the similarities.",
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Warp error of every pair of neighbouring frames; with CLIP a further "
                    "picture for each similarity.",
                ),
                io.String.Output(
                    display_name="json",
                    tooltip="Means and single values of every clip, warp errors x1e-3, and the "
                    "share of pixels that were compared.",
                ),
                io.Image.Output(
                    display_name="table",
                    tooltip="The means as a table, the best edit's in bold. Excess: warp error "
                    "above the reconstruction's, as a share of the first edit's.",
                ),
            ],
        )

    @classmethod
    def _options(cls) -> list[Any]:
        return [
            names_input(),
            io.Combo.Input(
                "flow",
                options=flow_choices(),
                default=DIS,
                optional=True,
                tooltip="What finds the source's motion. DIS needs no weights. RAFT, which the "
                "paper takes, needs torchvision's file in models/optical_flow.",
            ),
            io.ClipVision.Input(
                "clip_vision",
                optional=True,
                tooltip="CLIP's vision model, to measure how alike neighbouring frames are.",
            ),
            io.Clip.Input(
                "clip",
                optional=True,
                tooltip="The text encoder of the same CLIP, to score the prompt: ViT-H's (SD 2.x) "
                "or ViT-bigG's (SDXL). SD 1.x's does not fit.",
            ),
            io.String.Input(
                "prompt",
                default="",
                multiline=True,
                optional=True,
                tooltip="What the edits shall show. Needs clip and clip_vision.",
            ),
        ]

    @classmethod
    def validate_inputs(
        cls,
        names: str | None = None,
        flow: str | None = None,
        prompt: str | None = None,
        clip: Any = UNCONNECTED,
        clip_vision: Any = UNCONNECTED,
    ) -> bool | str:
        def check() -> None:
            check_names(NAME, parsed(names or ""))
            if flow is not None:
                check_flow(NAME, "flow", flow)
            if prompt is not None:
                _asks_for_score(clip_vision != UNCONNECTED, clip != UNCONNECTED, prompt)

        return before_run(cls, {"names": names, "prompt": prompt}, check, NEEDS)

    @classmethod
    @checked("flow", needs=NEEDS)
    def execute(
        cls,
        source: Any,
        edited: Any,
        reference: Any = None,
        reconstruction: Any = None,
        names: str = "",
        flow: str = DIS,
        clip_vision: Any = None,
        clip: Any = None,
        prompt: str = "",
        **more_edits: Any,
    ) -> io.NodeOutput:
        clips, words = like_source(
            NAME,
            {
                "source": source,
                "reconstruction": reconstruction,
                "edited": edited,
                "reference": reference,
                **more_edits,
            },
        )
        count, whole = len(clips["source"]), clips["source"].whole
        if count < 2:
            found = f"{count} frame(s)."
            raise NodeError(NAME, "source", found, "Connect a clip of at least two frames.")
        if min(whole) < 2:
            found = f"frames of {in_words(whole)} pixels."
            raise NodeError(NAME, "source", found, "Connect frames of at least 2 x 2 pixels.")
        report = measure(
            called(NAME, clips, names),
            load_flow(NAME, "flow", flow),
            flow,
            None if clip_vision is None else frame_embedding(NAME, "clip_vision", clip_vision),
            _prompt(clip_vision, clip, prompt),
        )
        text = lines(report.text(), words)
        return io.NodeOutput(
            text, report.plots(), report.json(), report.table(), ui=ui.PreviewText(text)
        )


def _prompt(clip_vision: Any, clip: Any, prompt: str) -> Tensor | None:
    """The embedded prompt, if one shall be scored.

    Raises: NodeError if anything for it is missing or does not fit.
    """
    if not _asks_for_score(clip_vision is not None, clip is not None, prompt):
        return None
    return prompt_embedding(NAME, "clip", clip, prompt, clip_vision)


def _asks_for_score(clip_vision: bool, clip: bool, prompt: str) -> bool:
    """Whether the prompt shall be scored, by what of it is there.

    Raises: NodeError if a part is missing.
    """
    parts = {"clip": clip, "clip_vision": clip_vision, "prompt": bool(prompt.strip())}
    if not parts["clip"] and not parts["prompt"]:
        return False
    for socket, there in parts.items():
        if not there:
            remedy = (
                "A score of the prompt takes clip, clip_vision and the prompt; "
                "leave clip and prompt empty for none."
            )
            raise NodeError(NAME, socket, "nothing there.", remedy)
    return True
