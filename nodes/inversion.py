"""DDIM Invert Video."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io, ui

from ..host.checkpoints.folders import Keeper
from ..host.families.latents import as_latent
from ..host.measuring.reconstruction import (
    describe_loss,
    reconstruct_frames,
    spread_frames,
    warn_if_lost,
)
from ..host.progress import Progress
from ..host.source import invert_frames
from ..host.validation.checks import (
    check_guided,
    check_latents,
    check_model,
    noise_mask,
    others_kept,
)
from ..host.validation.errors import NodeError
from ..host.validation.fingerprint import model_fingerprint
from ..host.validation.prompts import check_prompts
from ..tokenflow_ops import Inversion
from ..tokenflow_ops.inversion import may_pair
from .inputs import UNCONNECTED, before_run, checked
from .schema import (
    MASKED,
    InversionSocket,
    checkpoints_input,
    frames_per_pass_input,
    schema,
)

NAME = "DDIM Invert Video"
PLAIN, FIXED_POINT, EXTRAPOLATED, EVERY_OTHER = (
    "none",
    "fixed point",
    "extrapolated",
    "extrapolated, every other step",
)
# How `invert` extrapolates.
REFINEMENTS = {PLAIN: 0, FIXED_POINT: 0, EXTRAPOLATED: 1, EVERY_OTHER: 2}


class InvertVideo(io.ComfyNode):
    """Stage 1: the source frames' deterministic path to noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "InvertVideo",
            NAME,
            "Finds the noise from which the model would paint each source frame, and keeps the "
            "whole path. Everything else builds on it.",
            ["ddim inversion", "unsample", "invert", "noise", "video edit", "tokenflow"],
            advanced=(
                "cfg",
                "scheduler",
                "refinement",
                "iterations",
                "depth",
                "frames_per_pass",
                "checkpoints",
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The image model the edit will be made with (SD 1.x, SD 2.x, SDXL).",
                ),
                io.Latent.Input(
                    "latents",
                    tooltip="The source frames, encoded with VAE Encode: one batch, any number of "
                    "frames. A noise mask on them is where the edit will be.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The source prompt: what the source clip shows, in plain words.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Only used with cfg above 1. Leave it empty for inversion.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="1 is right for nearly everything: higher values reconstruct worse.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Steps of the schedule, for inversion and sampling alike. 50 as in "
                    "the paper, 25 for drafts.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="normal",
                    tooltip="The host's noise schedule. The sampler follows it in reverse.",
                ),
                io.Combo.Input(
                    "refinement",
                    options=list(REFINEMENTS),
                    default=EXTRAPOLATED,
                    tooltip="How each step is made more exact. none: plain DDIM. fixed point: "
                    "repeats it. extrapolated: repeats it from a better guess, the most exact. "
                    "every other step: twice as fast, look at the check.",
                ),
                io.Int.Input(
                    "iterations",
                    default=0,
                    min=0,
                    max=20,
                    tooltip="Additional model calls a step for the refinement. 0 is enough for "
                    "extrapolated from about 30 steps on. 1 for fewer steps or fast motion; "
                    "fixed point needs at least 1.",
                ),
                io.Float.Input(
                    "depth",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How far up the noise: 1 inverts to pure noise, 0.6 the last 60 % "
                    "of the steps, for SDEdit.",
                ),
                frames_per_pass_input(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="For the check of the reconstruction: what is lost "
                    "is then told in pictures.",
                ),
                io.Boolean.Input(
                    "check_reconstruction",
                    default=True,
                    optional=True,
                    tooltip="Samples up to four frames back from the noise and says how close they "
                    "come to the source, in dB.",
                ),
                checkpoints_input(),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion",
                    tooltip="The path from the frames to noise, for Extract SA Features.",
                ),
                io.Latent.Output(
                    display_name="noisy",
                    tooltip="The noisy end, to sample from with added noise disabled.",
                ),
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The noise levels downwards, for SamplerCustom."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, cfg: float | None = None, negative: Any = UNCONNECTED) -> bool | str:
        return before_run(
            cls, {"cfg": cfg}, lambda: check_guided(NAME, cfg or 1, negative != UNCONNECTED)
        )

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        latents: dict[str, Any],
        positive: Any,
        cfg: float = 1.0,
        steps: int = 50,
        scheduler: str = "normal",
        refinement: str = EXTRAPOLATED,
        iterations: int = 0,
        depth: float = 1.0,
        frames_per_pass: int = 0,
        negative: Any = None,
        vae: Any = None,
        check_reconstruction: bool = True,
        checkpoints: bool = False,
    ) -> io.NodeOutput:
        backbone = check_model(NAME, model)
        samples = check_latents(NAME, model, latents)
        mask = noise_mask(NAME, latents, len(samples))
        check_guided(NAME, cfg, bool(negative))
        check_prompts(NAME, model, positive)
        if negative:
            check_prompts(NAME, model, negative, "negative")
        sigmas = _sigmas(model, scheduler, steps)[-(max(1, round(steps * depth)) + 1) :]
        again, extrapolate = 0 if refinement == PLAIN else iterations, REFINEMENTS[refinement]
        negative = negative or []
        progress = Progress((len(sigmas) - 1) * (2 if check_reconstruction else 1))
        flow = backbone.parameterization.flow
        pairs = refinement == EXTRAPOLATED and may_pair(steps, again, flow)
        how = again, extrapolate, pairs, frames_per_pass
        settings = (positive, negative, cfg, samples, sigmas, *how)
        keeper = Keeper(NAME, settings) if checkpoints else None
        path = invert_frames(NAME, model, *settings, progress, keeper)
        if not torch.isfinite(path[0]).all():
            raise NodeError(
                NAME,
                "model",
                "the model returned NaN or infinite values.",
                "Run it in a higher precision (--force-fp32 or --bf16-unet).",
            )
        inversion = Inversion(
            sigmas.clone(), path, positive, model_fingerprint(model), steps, scheduler, mask
        )
        noisy = as_latent(model, path[0], sigmas[0])
        text = (
            f"{inversion.frames} frames inverted in {len(sigmas) - 1} steps "
            f"up to sigma {float(sigmas[0]):.2f}"
        )
        if mask is not None:
            text += f"\n{MASKED}"
        if check_reconstruction:
            frames = spread_frames(inversion.frames)
            found = reconstruct_frames(
                NAME, model, inversion, negative, cfg, samples, frames, frames_per_pass, progress
            )
            text += f"\nreconstruction: {describe_loss(model, vae, found, path[-1][frames])}"
            text += warn_if_lost(NAME, inversion, found, path[-1][frames], cfg)
        return io.NodeOutput(
            inversion, {**others_kept(latents), "samples": noisy}, sigmas, ui=ui.PreviewText(text)
        )


def _sigmas(model: Any, scheduler: str, steps: int) -> torch.Tensor:
    sigmas = comfy.samplers.KSampler(
        model, steps=steps, device="cpu", sampler="euler", scheduler=scheduler
    ).sigmas
    if not bool((sigmas[:-1] > sigmas[1:]).all()):
        raise NodeError(
            NAME,
            "steps",
            f"the scheduler '{scheduler}' gives no falling noise levels at {steps} steps.",
            "Choose another number of steps, or the scheduler 'normal'.",
        )
    return sigmas
