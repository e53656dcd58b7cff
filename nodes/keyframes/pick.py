"""Pick Keyframes."""

from __future__ import annotations

from typing import Any

import torch
from comfy import model_management
from comfy_api.latest import io

from ...host.validation.errors import NodeError
from ...host.video.clips import Clip
from ...tokenflow_ops.carrying.picking import covering
from ...tokenflow_ops.keyframes import interval_starts
from ..inputs import before_run, checked
from ..schema import clip_input, preview, schema, shown_frames
from .numbers import check_shots, check_text, cuts_input, parsed, shots_of, shrunk

NAME = "Pick Keyframes"
EVERYTHING, EVERY_NTH, BY_NUMBER = CHOICES = (
    "so that everything is seen",
    "every n-th",
    "by number",
)


class PickKeyframes(io.ComfyNode):
    """The frames of a clip that are to be edited by any editor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "PickKeyframes",
            NAME,
            "Takes from a clip the frames to edit with whatever nodes or programs. Carry Keyframes "
            "makes the whole clip of them.",
            ["keyframes", "ebsynth", "select frames", "painted frame", "image edit to video"],
            advanced=("cuts",),
            inputs=[
                clip_input("frames", tooltip="The source frames."),
                io.Combo.Input(
                    "choice",
                    options=list(CHOICES),
                    default=EVERYTHING,
                    tooltip="so that everything is seen: as few frames as show all that appears. "
                    "every n-th: at even distances. by number: those of numbers.",
                ),
                io.Int.Input(
                    "every",
                    default=8,
                    min=1,
                    max=4096,
                    tooltip="For every n-th: one keyframe per this many frames.",
                ),
                io.Int.Input(
                    "most",
                    default=5,
                    min=1,
                    max=16,
                    tooltip="For so that everything is seen: how many keyframes a shot has at "
                    "most. One is enough to paint a whole clip.",
                ),
                io.String.Input(
                    "numbers",
                    default="0",
                    tooltip='For by number: frame numbers counted from 0, as in "0, 8, 16".',
                ),
                cuts_input(),
            ],
            outputs=[
                io.Image.Output(display_name="keyframes", tooltip="The frames to edit, one batch."),
                io.String.Output(
                    display_name="numbers", tooltip="Their frame numbers, for Carry Keyframes."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, choice: str | None = None, numbers: str | None = None) -> bool | str:
        def check() -> None:
            if choice == BY_NUMBER and numbers is not None:
                check_text(NAME, numbers)

        return before_run(cls, {"choice": choice, "numbers": numbers}, check)

    @classmethod
    @checked()
    def execute(
        cls,
        frames: Any,
        choice: str = EVERYTHING,
        every: int = 8,
        most: int = 5,
        numbers: str = "0",
        cuts: str = "found",
    ) -> io.NodeOutput:
        clip = Clip.of(NAME, "frames", frames)
        pictures = shrunk(clip)
        shots = shots_of(pictures, cuts)
        if choice == BY_NUMBER:
            chosen = sorted(parsed(NAME, numbers, len(clip)))
            check_shots(NAME, chosen, shots)
        elif choice == EVERY_NTH:
            chosen = interval_starts(len(clip), every, shots).tolist()
        else:
            check = model_management.throw_exception_if_processing_interrupted
            chosen = covering(pictures, most, shots, check)
        if not chosen:
            raise NodeError(NAME, "frames", "no frame.", "Connect the source frames.")
        text = ", ".join(map(str, chosen))
        keyframes = clip[torch.tensor(chosen)]
        told = f"{len(chosen)} of {len(clip)} frames: {text}"
        return io.NodeOutput(
            keyframes, text, ui=preview(keyframes[shown_frames(len(chosen))], told)
        )
