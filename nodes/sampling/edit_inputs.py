"""The inputs that describe an edit, which TokenFlow Sampler and Apply TokenFlow share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...modes import MODES
from ...tokenflow_ops import PROPAGATIONS
from ..presets import BALANCED, BY_PRESET, MOST_KEYFRAMES, NUMBER_BY_PRESET, PRESETS
from ..schema import KeyframesSocket, frames_per_pass_input

# Edits go well without them: by the preset, or by the best there is.
FINER = ("attended_keyframes", "frames_per_pass", "carry_until", "propagation", "mask_from")
# From this share of the schedule on the mask holds, if nothing else is asked for.
MASK_FROM = 0.2


def edit_inputs() -> list[Any]:
    """Makes the first inputs of an edit: how frames are kept together, and where to edit."""
    return [
        io.Combo.Input(
            "consistency",
            options=list(MODES),
            default="tokenflow",
            tooltip="tokenflow: keyframes are edited jointly and carried to all frames. joint "
            "attention: all frames look at the keyframes. per frame: no consistency. The others "
            "are for comparison, see the help.",
        ),
        io.Combo.Input(
            "preset",
            options=list(PRESETS),
            default=BALANCED,
            optional=True,
            tooltip="Sets the inputs that are as preset (-1), and the sampler's share of steps. "
            "balanced: steadiest. faithful: as the paper, slower. fast: half of the steps. draft: "
            "a quarter. lean: all, each in less time.",
        ),
        io.Int.Input(
            "attended_keyframes",
            default=NUMBER_BY_PRESET,
            min=NUMBER_BY_PRESET,
            max=MOST_KEYFRAMES,
            optional=True,
            tooltip="How many keyframes attend to each other at most. -1: as preset, 8 or "
            "with faithful all; in other modes all. A clip with more keyframes is edited in "
            "windows of time, see the help.",
        ),
        frames_per_pass_input(),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where to edit: one mask per frame, or one for all. Outside of it (0) the "
            "frames stay as they are. Soft edges blend. Nothing connected: the noise mask that the "
            "inverted latents had, if any.",
        ),
    ]


def late_inputs() -> list[Any]:
    """Makes those that came after others: workflows keep their widgets' values by position."""
    return [
        io.Image.Input(
            "frames",
            optional=True,
            tooltip="The source frames, the images that were encoded. Only rerender needs "
            "them, to find the motion.",
        ),
        io.Float.Input(
            "carry_until",
            default=float(NUMBER_BY_PRESET),
            min=float(NUMBER_BY_PRESET),
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="For tokenflow: share of SD's schedule, by noise, in which pictures are "
            "carried too: steadier. -1: as preset, 0.2 (transformers 0.5-0.65, faithful 0). 0: "
            "tokens only (paper). Above 0.5 patches repeat.",
        ),
        io.Combo.Input(
            "propagation",
            options=[BY_PRESET, *PROPAGATIONS],
            default=BY_PRESET,
            optional=True,
            tooltip="For tokenflow: what frames take from keyframes. deep features: all below full "
            "resolution; steadier, faster. attention: self-attention's output, as in the paper. as "
            "preset: the preset decides.",
        ),
        io.Float.Input(
            "mask_from",
            default=MASK_FROM,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="Share of SD's schedule, by its noise, from which on the mask holds. Before it "
            "the whole frame is edited, so that what is new fits in. 0: always, and the edit may "
            "fade into the ground.",
        ),
        KeyframesSocket.Input(
            "keyframes",
            optional=True,
            tooltip="From Carry Keyframes: edited pictures that the clip is made of. They stay as "
            "they are; the model computes what none of them shows.",
        ),
    ]
