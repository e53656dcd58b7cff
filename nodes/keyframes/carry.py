"""Carry Keyframes."""

from __future__ import annotations

from typing import Any

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ...host.families.latents import of_frames
from ...host.validation.errors import NodeError
from ...host.video.autoencoder import encode
from ...host.video.clips import Clip
from ...tokenflow_ops.carrying.given import GivenKeyframes
from ...tokenflow_ops.carrying.pictures import carry_pictures
from ..inputs import before_run, checked
from ..schema import KeyframesSocket, said, schema
from .numbers import check_shots, check_text, cuts_input, parsed, shots_of, shrunk

NAME = "Carry Keyframes"
NEEDS = ("cv2",)


class CarryKeyframes(io.ComfyNode):
    """A clip made of keyframes that any editor has edited."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "CarryKeyframes",
            NAME,
            "Makes a whole clip of a few edited frames, along the source's motion. What no "
            "keyframe shows is told; TokenFlow Sampler computes it.",
            ["propagate keyframes", "ebsynth", "edited keyframes", "painted frame", "style frame"],
            advanced=("cuts", "agreement"),
            inputs=[
                io.Image.Input("frames", tooltip="The source frames."),
                io.Image.Input(
                    "keyframes",
                    tooltip="The edited keyframes, in the order of numbers. With an agreement "
                    "of 0 they stay as they are.",
                ),
                io.String.Input(
                    "numbers",
                    default="0",
                    tooltip="Their frame numbers counted from 0, from Pick Keyframes or as in "
                    '"0, 8, 16".',
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The model's autoencoder. Only for TokenFlow Sampler and Apply "
                    "TokenFlow, which need the clip encoded.",
                ),
                cuts_input(),
                io.Float.Input(
                    "agreement",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much keyframes take over from the middle one of their shot, "
                    "where it shows the same: less flicker if they differ. 0: they are kept as "
                    "they are.",
                ),
            ],
            outputs=[
                KeyframesSocket.Output(
                    display_name="keyframes",
                    tooltip="For TokenFlow Sampler or Apply TokenFlow, with vae connected.",
                ),
                io.Image.Output(display_name="clip", tooltip="The clip made of the keyframes."),
                io.Mask.Output(
                    display_name="hidden",
                    tooltip="Where no keyframe shows what the frame shows: there the clip is a "
                    "guess.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, numbers: str | None = None) -> bool | str:
        def check() -> None:
            if numbers is not None:
                check_text(NAME, numbers)

        return before_run(cls, {"numbers": numbers}, check, NEEDS)

    @classmethod
    @checked(needs=NEEDS)
    def execute(
        cls,
        frames: torch.Tensor,
        keyframes: torch.Tensor,
        numbers: str = "0",
        vae: Any = None,
        cuts: str = "found",
        agreement: float = 0.0,
    ) -> io.NodeOutput:
        given = parsed(NAME, numbers, len(frames))
        keyframes = _in_size(keyframes, frames)
        if len(keyframes) != len(given):
            found = f"{len(keyframes)} pictures for {len(given)} numbers."
            raise NodeError(NAME, "keyframes", found, "Connect one edited picture per number.")
        shots = shots_of(shrunk(Clip.of(NAME, "frames", frames)), cuts)
        check_shots(NAME, given, shots)
        order = sorted(range(len(given)), key=given.__getitem__)
        given = sorted(given)
        progress = ProgressBar(1)
        carried = carry_pictures(
            _channels_first(frames),
            _channels_first(keyframes)[order],
            given,
            shots,
            agreement,
            on_frames=progress.update_absolute,
            check=model_management.throw_exception_if_processing_interrupted,
        )
        clip = carried.pictures.movedim(1, -1).contiguous()
        encoded = (
            None
            if vae is None
            else GivenKeyframes(tuple(given), _encoded(vae, clip), carried.hidden)
        )
        told = f"{len(given)} keyframes, {len(frames)} frames"
        hidden = f"nowhere to be seen: {float(carried.hidden.mean()):.1%} of all pixels"
        return io.NodeOutput(encoded, clip, carried.hidden, ui=said(told, hidden))


def _channels_first(pictures: torch.Tensor) -> torch.Tensor:
    return pictures[..., :3].movedim(-1, 1).float().cpu().clamp(0, 1).contiguous()


def _in_size(keyframes: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Edited pictures in the size of the frames: editors round sizes to multiples.

    Raises: NodeError for pictures of another shape.
    """
    (height, width), (rows, columns) = frames.shape[1:3], keyframes.shape[1:3]
    if (height, width) == (rows, columns):
        return keyframes
    if abs(rows * width / (columns * height) - 1) > STRETCHED:
        found = f"pictures of {columns} x {rows} pixels for frames of {width} x {height}."
        raise NodeError(NAME, "keyframes", found, "Connect pictures of the frames' shape.")
    scaled = torch.nn.functional.interpolate(
        _channels_first(keyframes), (height, width), mode="bicubic", antialias=True
    )
    return scaled.clamp(0, 1).movedim(1, -1)


STRETCHED = 0.05  # of the ratio of a picture's sides


def _encoded(vae: Any, clip: torch.Tensor) -> torch.Tensor:
    """The clip's latents, (N, C, h, w) as on a LATENT socket, picture by picture."""
    latents = []
    for picture in clip:
        model_management.throw_exception_if_processing_interrupted()
        latents.append(of_frames(encode(NAME, vae, picture[None])).float().cpu())
    return torch.cat(latents)
