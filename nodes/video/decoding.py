"""Decode to Video."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ...host.progress import Progress
from ...host.validation.errors import NodeError
from ...host.video.autoencoder import decode
from ...host.video.reading import FEW, read_sound, video_facts
from ...host.video.writing import USUAL_RATE, written_video
from ..inputs import checked
from ..schema import schema

NAME = "Decode to Video"
LARGEST_DENOMINATOR = 1001  # of frame rates such as 30000/1001


class DecodeToVideo(io.ComfyNode):
    """VAE Decode into a video file, of which never more than a few frames are held."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "DecodeToVideo",
            NAME,
            "Decodes latents a few frames at a time into a video, so that a clip of any length "
            "needs no more memory than its latents: in place of VAE Decode and Create Video.",
            ["vae decode video", "stream", "long video", "low memory", "latent to video"],
            advanced=("start_time", "crf"),
            inputs=[
                io.Latent.Input("samples", tooltip="The edited latents."),
                io.Vae.Input("vae", tooltip="The VAE that the frames were encoded with."),
                io.Video.Input(
                    "source",
                    optional=True,
                    tooltip="The source video: its sound and frame rate are taken over.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames a second, from Encode Video. 0: the source's, or 30 "
                    "without one.",
                ),
                io.Float.Input(
                    "start_time",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=0.01,
                    tooltip="From where on the source's sound is taken, in seconds, from Encode "
                    "Video.",
                ),
                io.Int.Input(
                    "crf",
                    default=18,
                    min=0,
                    max=51,
                    tooltip="H.264's quality: 0 loses nothing and is large, 18 cannot be told "
                    "from the frames, 23 is Create Video's.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="For Save Video, which copies it as it is.",
                )
            ],
        )

    @classmethod
    @checked()
    def execute(
        cls,
        samples: dict[str, Any],
        vae: Any,
        source: Any = None,
        frame_rate: float = 0.0,
        start_time: float = 0.0,
        crf: int = 18,
    ) -> io.NodeOutput:
        latents = _latents(samples["samples"])
        rate = Fraction(frame_rate or USUAL_RATE)
        if source is not None and not frame_rate:
            rate = video_facts(NAME, "source", source).rate
        rate = rate.limit_denominator(LARGEST_DENOMINATOR)
        if rate <= 0:
            found = f"{frame_rate:g} frames a second."
            raise NodeError(NAME, "frame_rate", found, "Give at least a thousandth.")
        seconds = len(latents) / rate
        sound = source and read_sound(NAME, "source", source, start_time, float(seconds))
        video = written_video(NAME, _decoded(vae, latents), rate, sound, crf)
        heard = "with sound" if sound else "without sound"
        text = f"{len(latents)} frames, {float(seconds):.1f} s, {heard}"
        return io.NodeOutput(video, ui=ui.PreviewText(text))


def _latents(samples: Any) -> Tensor:
    """Raises: NodeError for what is no batch of pictures' latents."""
    nested = getattr(samples, "is_nested", False)
    pictures = not nested and (samples.ndim == 4 or (samples.ndim == 5 and samples.shape[2] == 1))
    if not pictures or not samples.numel():
        found = f"latents of shape {'nested' if nested else tuple(samples.shape)}."
        remedy = "Connect at least one frame, encoded by an image model's VAE: (N, C, h, w)."
        raise NodeError(NAME, "samples", found, remedy)
    latents: Tensor = samples
    return latents


def _decoded(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    """The frames (H, W, 3), made as they are asked for."""
    progress = Progress(len(latents))
    for part in latents.split(FEW):
        for frame in decode(NAME, vae, part):
            if frame.shape[0] % 2 or frame.shape[1] % 2 or frame.shape[2] != 3:
                found = f"frames of {frame.shape[1]} x {frame.shape[0]} x {frame.shape[2]}."
                remedy = "H.264 takes even sides and three channels: use VAE Decode."
                raise NodeError(NAME, "vae", found, remedy)
            yield frame
        progress(len(part))
