"""Find Edit Mask."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.edit_mask import prompts_apart
from ..host.memory import room
from ..host.progress import Progress
from ..host.validation.checks import check_frame_count, check_model, check_same_model
from ..host.validation.errors import NodeError
from ..host.validation.prompts import check_prompts
from ..host.video.clips import Clip
from ..tokenflow_ops import Inversion
from ..tokenflow_ops.masking.disagreement import LEVELS
from ..tokenflow_ops.masking.outlines import ROUNDS, each_edit_mask, grown, softened
from .inputs import before_run, checked
from .schema import (
    InversionSocket,
    clip_input,
    frames_per_pass_input,
    lines,
    preview,
    schema,
    shown_frames,
)

NAME = "Find Edit Mask"
NEEDS = ("cv2",)
SAME = 1e-4  # prompts that are less apart than this say the same to the model
MOST_SHOWN = 16
MOST_DIMMED = 64  # frames of a VIDEO
DIMMED = 0.3  # brightness of what is not edited, in the pictures


class FindEditMask(io.ComfyNode):
    """Where the edit is to happen, by the prompts alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "FindEditMask",
            NAME,
            "Finds what the edit prompt changes: where the model sees something else in the source "
            "under it than under the source prompt, up to the outlines of the frames.",
            ["diffedit", "auto mask", "segment", "local edit", "grabcut", "keep background"],
            advanced=("frames_per_pass",),
            inputs=[
                io.Model.Input("model", tooltip="The model the frames were inverted with."),
                InversionSocket.Input(
                    "inversion", tooltip="From DDIM Invert Video or Load Inversion."
                ),
                io.Conditioning.Input("positive", tooltip="The edit prompt, as in the sampler."),
                clip_input("frames", tooltip="The source frames, whose outlines it follows."),
                io.Float.Input(
                    "sensitivity",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    tooltip="Higher finds more, lower less. Look at the preview.",
                ),
                io.Int.Input(
                    "grow",
                    default=2,
                    min=0,
                    max=256,
                    tooltip="Pixels that are added all around, for outlines that the edit moves "
                    "and for shadows.",
                ),
                frames_per_pass_input(),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="One mask per frame, for TokenFlow Sampler: outside of it the frames "
                    "stay as they are.",
                ),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The frames, dimmed where nothing is edited; of a VIDEO with more "
                    "than 64 so many, spread evenly.",
                ),
                io.Mask.Output(
                    display_name="outlines",
                    tooltip="The same without grow, with soft edges: for ImageCompositeMasked, to "
                    "lay the edit over the source frames pixel by pixel.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, sensitivity: float | None = None) -> bool | str:
        return before_run(cls, {"sensitivity": sensitivity}, needs=NEEDS)

    @classmethod
    @checked(needs=NEEDS)
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        positive: Any,
        frames: Any,
        sensitivity: float = 1.0,
        grow: int = 2,
        frames_per_pass: int = 0,
    ) -> io.NodeOutput:
        backbone = check_model(NAME, model)
        check_same_model(NAME, model, inversion)
        check_prompts(NAME, model, positive)
        clip = Clip.of(NAME, "frames", frames)
        check_frame_count(NAME, clip, inversion)
        clip, cut = clip.as_encoded(inversion)
        progress = Progress(2 * len(LEVELS) + ROUNDS + len(clip))
        apart = prompts_apart(
            NAME,
            model,
            inversion,
            positive,
            backbone.parameterization,
            frames_per_pass,
            progress,
        )
        if not torch.isfinite(apart).all():
            remedy = "Run it in a higher precision (--force-fp32 or --bf16-unet)."
            raise NodeError(NAME, "model", "it sees NaN or infinite values.", remedy)
        if float(apart.max()) <= SAME:
            raise NodeError(
                NAME,
                "positive",
                "a prompt that says the same to the model as the inversion's.",
                "Connect the edit prompt, not the source prompt.",
            )
        masks, outlines = (_room(clip) for _ in range(2))
        for i, found in enumerate(each_edit_mask(clip, apart, sensitivity, progress)):
            masks[i], outlines[i] = grown(found[None], grow)[0], softened(found[None])[0]
        text = _text(masks)
        shown = shown_frames(len(clip), len(clip) if not clip.streamed else MOST_DIMMED)
        dimmed = clip[shown] * (DIMMED + (1 - DIMMED) * masks[shown].cpu())[..., None]
        few = dimmed[shown_frames(len(dimmed), MOST_SHOWN)]
        return io.NodeOutput(masks, dimmed, outlines, ui=preview(few, lines(text, cut)))


def _room(clip: Clip) -> torch.Tensor:
    """What masks of a clip are written into."""
    return room(
        NAME,
        len(clip),
        *clip.size,
        socket="frames",
        what="a mask for each frame",
        remedy="Make room on that disk, or take fewer frames or smaller ones.",
    )


def _text(masks: torch.Tensor) -> str:
    """How much of a clip is edited, in words. masks: (N, H, W)."""
    seen = torch.stack([mask.mean() for mask in masks])
    return (
        f"edited in {int((seen > 0).sum())} of {len(masks)} frames, "
        f"{100 * float(seen.mean()):.1f} % of the clip"
    )
