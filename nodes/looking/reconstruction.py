"""Check Reconstruction."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...host.families.latents import to_latent
from ...host.measuring.reconstruction import (
    ALONE,
    BACK,
    check_vae,
    compare_pictures,
    reconstruct_frames,
    spread_frames,
    warn_if_lost,
)
from ...host.progress import Progress
from ...host.validation.checks import (
    check_frame_count,
    check_guided,
    check_model,
    check_same_model,
)
from ...host.validation.prompts import check_prompts
from ...host.video.clips import Clip
from ...reporting.plots import plot_lines
from ...tokenflow_ops import Inversion
from ..inputs import UNCONNECTED, before_run, checked
from ..schema import (
    InversionSocket,
    clip_input,
    frames_per_pass_input,
    lines,
    most_frames_input,
    preview,
    schema,
    shown_frames,
)

NAME = "Check Reconstruction"
NEEDS = ("matplotlib",)
MOST_CHECKED = 16
VAES_SOURCE = "autoencoder's pictures of the inverted latents"


class CheckReconstruction(io.ComfyNode):
    """Whether the inversion holds the source."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "CheckReconstruction",
            NAME,
            "Samples frames back from the inverted noise with the source prompt and compares them "
            "with the source: what is lost here no edit can keep.",
            [
                "inversion quality",
                "psnr",
                "reconstruct",
                "ddim inversion check",
                "bad edit",
                "debug",
            ],
            advanced=("cfg", "frames_per_pass"),
            inputs=[
                io.Model.Input("model", tooltip="The model the frames were inverted with."),
                InversionSocket.Input(
                    "inversion", tooltip="From DDIM Invert Video or Load Inversion."
                ),
                io.Vae.Input("vae", tooltip="The VAE the frames were encoded with."),
                most_frames_input(MOST_CHECKED),
                clip_input(
                    "frames",
                    optional=True,
                    tooltip="The source frames. Without them the autoencoder's pictures of the "
                    "inverted latents stand for the source.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    optional=True,
                    tooltip="As in DDIM Invert Video, 1 for nearly all.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="As in DDIM Invert Video, only with cfg above 1.",
                ),
                frames_per_pass_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="reconstruction",
                    tooltip="The frames as the inversion gives them back.",
                ),
                io.Image.Output(
                    display_name="comparison",
                    tooltip="Source, reconstruction and their difference, five times "
                    "as bright, side by side.",
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="PSNR of each frame in dB, the reconstruction's beside the "
                    "autoencoder's own: the closer the lines, the better.",
                ),
                io.String.Output(
                    display_name="figures",
                    tooltip="PSNR in dB: mean and lowest frame, and what the inversion loses.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, cfg: float | None = None, negative: Any = UNCONNECTED) -> bool | str:
        return before_run(
            cls, {"cfg": cfg}, lambda: check_guided(NAME, cfg or 1, negative != UNCONNECTED), NEEDS
        )

    @classmethod
    @checked(needs=NEEDS)
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        vae: Any,
        most_frames: int = MOST_CHECKED,
        frames: Any = None,
        cfg: float = 1.0,
        negative: Any = None,
        frames_per_pass: int = 0,
    ) -> io.NodeOutput:
        check_model(NAME, model)
        check_same_model(NAME, model, inversion)
        check_guided(NAME, cfg, bool(negative))
        if negative:
            check_prompts(NAME, model, negative, "negative")
        clip, cut = None, ""
        if frames is not None:
            clip = Clip.of(NAME, "frames", frames)
            check_frame_count(NAME, clip, inversion)
            clip, cut = clip.as_encoded(inversion)
        check_vae(NAME, model, vae, inversion, None if clip is None else clip.size)
        shown, clean = shown_frames(inversion.frames, most_frames), inversion.latents[-1]
        latents = to_latent(model, clean)
        progress = Progress(len(inversion.sigmas) - 1 + len(shown))
        found = reconstruct_frames(
            NAME, model, inversion, negative or [], cfg, latents, shown, frames_per_pass, progress
        )
        chosen = None if clip is None else clip[shown]
        pictures, comparison, figures = compare_pictures(
            NAME, model, vae, found, clean[shown], chosen, progress
        )
        plot = plot_lines(
            {name: values.tolist() for name, values in figures.items()},
            "frame",
            "PSNR, dB",
            x=shown.tolist(),
        )
        text = _text(figures, shown, inversion.frames) + warn_if_lost(
            NAME, inversion, found, clean[shown], cfg
        )
        text = lines(text, cut)
        return io.NodeOutput(
            pictures,
            comparison,
            plot,
            text,
            ui=preview(comparison[spread_frames(len(shown))], text),
        )


def _text(figures: dict[str, Tensor], shown: Tensor, total: int) -> str:
    """In words. figures: PSNR (n,) by name, of the frames `shown` (n,) of all."""
    source = "source" if ALONE in figures else VAES_SOURCE
    lines = [f"{len(shown)} of {total} frames sampled back from the noise; PSNR to the {source}"]
    for name, values in figures.items():
        worst = int(shown[values.argmin()])
        lines.append(
            f"{name:20} {values.mean():.1f} dB (lowest, frame {worst}: {values.min():.1f})"
        )
    if ALONE in figures:
        lines.append(
            f"{'lost by the inversion':20} {figures[ALONE].mean() - figures[BACK].mean():.1f} dB"
        )
    return "\n".join(lines)
