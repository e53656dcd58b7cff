"""Apply TokenFlow."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...host.editing.sampling import apply_edit
from ...tokenflow_ops import Correspondences, Injection
from ...tokenflow_ops.carrying.given import GivenKeyframes
from ..inputs import UNCONNECTED, checked
from ..presets import BALANCED, BY_PRESET, NUMBER_BY_PRESET
from ..schema import CorrespondencesSocket, InjectionSocket, checkpoints_input, said, schema
from .edit import check_before_run, keeper_of, make_edit, preset_for
from .edit_inputs import FINER, MASK_FROM, edit_inputs, late_inputs

APPLY = "Apply TokenFlow"


class Apply(io.ComfyNode):
    """Stage 2 as a patch on the model, for any of the host's samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Apply",
            APPLY,
            "Makes a model edit frames consistently under KSampler (Advanced), SamplerCustom "
            "or any other sampler. Sample all frames in one batch, from the inversion's noisy "
            "latents, with added noise disabled.",
            [
                "apply tokenflow",
                "patch model",
                "vid2vid",
                "video edit",
                "style transfer",
                "flicker",
            ],
            advanced=(*FINER, "checkpoints"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model the frames were inverted with; LoRA and other "
                    "patches on top are fine.",
                ),
                CorrespondencesSocket.Input(
                    "correspondences", tooltip="From Build NN Correspondences."
                ),
                InjectionSocket.Input(
                    "injection",
                    optional=True,
                    tooltip="From Plug-and-Play Injection, to keep the source's structure.",
                ),
                *edit_inputs(),
                *late_inputs(),
                checkpoints_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="A patched clone; the given model stays as it was.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, consistency: str | None = None, frames: Any = UNCONNECTED
    ) -> bool | str:
        return check_before_run(cls, APPLY, consistency, frames)

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        correspondences: Correspondences,
        consistency: str = "tokenflow",
        attended_keyframes: int = NUMBER_BY_PRESET,
        frames_per_pass: int = 0,
        injection: Injection | None = None,
        mask: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
        carry_until: float = NUMBER_BY_PRESET,
        propagation: str = BY_PRESET,
        preset: str = BALANCED,
        mask_from: float = MASK_FROM,
        keyframes: GivenKeyframes | None = None,
        checkpoints: bool = False,
    ) -> io.NodeOutput:
        chosen = preset_for(preset, model).but(propagation, carry_until, attended_keyframes)
        asked = (consistency, frames_per_pass, mask, mask_from, frames, keyframes, chosen)
        edit, cut = make_edit(APPLY, model, correspondences, injection, *asked)
        keeper = keeper_of(edit, consistency, chosen, checkpoints)
        return io.NodeOutput(apply_edit(model, edit, keeper), ui=said(cut))
