"""TokenFlow Sampler."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io

from ...host.editing.edit import Edit, kept_path
from ...host.editing.sampling import apply_edit, sample_edit
from ...host.families.latents import as_latent, to_latent
from ...host.validation.errors import NodeError
from ...host.validation.prompts import check_prompts
from ...tokenflow_ops import Correspondences, Injection, Inversion
from ...tokenflow_ops.carrying.given import GivenKeyframes
from ..inputs import UNCONNECTED, checked
from ..presets import BALANCED, BY_PRESET, NUMBER_BY_PRESET
from ..schema import CorrespondencesSocket, InjectionSocket, checkpoints_input, said, schema
from .edit import check_before_run, keeper_of, make_edit, preset_for
from .edit_inputs import FINER, MASK_FROM, edit_inputs, late_inputs

SAMPLER = "TokenFlow Sampler"
INVERTED, FRESH, FRESH_FOR_ALL = NOISES = "inverted", "fresh", "fresh, one for all frames"


class Sampler(io.ComfyNode):
    """Stage 2: the edit, from the inverted noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Sampler",
            SAMPLER,
            "Edits all frames together: at every step the keyframes jointly, then every frame with "
            "their features, moved as the source moves.",
            [
                "tokenflow sampler",
                "vid2vid",
                "video to video",
                "video edit",
                "style transfer",
                "restyle",
                "flicker",
                "consistent edit",
                "ksampler",
            ],
            advanced=("sampler_name", "seed", "noise", *FINER, "checkpoints"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model the frames were inverted with; LoRA and other "
                    "patches on top are fine.",
                ),
                io.Conditioning.Input(
                    "positive", tooltip="The edit prompt: what the clip shall show."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What it shall not show; with a mask half of the source prompt.",
                ),
                CorrespondencesSocket.Input(
                    "correspondences", tooltip="From Build NN Correspondences."
                ),
                InjectionSocket.Input(
                    "injection",
                    optional=True,
                    tooltip="From Plug-and-Play Injection, to keep the source's structure.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the prompt is followed. 7.5 as in the paper.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default="euler",
                    tooltip="euler is deterministic DDIM, the inversion's inverse. Ancestral and "
                    "SDE samplers lose the source.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Only for fresh noise, and for samplers that add noise of their own: "
                    "with inverted noise and euler it changes nothing.",
                ),
                io.Float.Input(
                    "start",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the inverted steps to sample. 1: from the noisy end; less: "
                    "SDEdit, closer to the source.",
                ),
                *edit_inputs(),
                io.Combo.Input(
                    "noise",
                    options=list(NOISES),
                    default=INVERTED,
                    optional=True,
                    tooltip="What to start from. inverted: the source's own noise, which keeps "
                    "most of it. fresh: random noise on the source (SDEdit: start below 1; Turbo, "
                    "schnell: always). One for all frames flickers less.",
                ),
                *late_inputs(),
                checkpoints_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The edited frames, for VAE Decode."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, consistency: str | None = None, frames: Any = UNCONNECTED
    ) -> bool | str:
        return check_before_run(cls, SAMPLER, consistency, frames)

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        correspondences: Correspondences,
        cfg: float = 7.5,
        sampler_name: str = "euler",
        seed: int = 0,
        start: float = 1.0,
        consistency: str = "tokenflow",
        attended_keyframes: int = NUMBER_BY_PRESET,
        frames_per_pass: int = 0,
        injection: Injection | None = None,
        mask: torch.Tensor | None = None,
        noise: str = INVERTED,
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
        edit, cut = make_edit(SAMPLER, model, correspondences, injection, *asked)
        check_prompts(SAMPLER, model, positive)
        if negative or cfg != 1:  # with 1 it is not looked at
            check_prompts(SAMPLER, model, negative, "negative")
        inversion = correspondences.features.inversion
        sigmas = chosen.sigmas(_sigmas(model, inversion, sampler_name, start))
        if edit.given is not None and edit.mask is not None and not bool(edit.mask.any()):
            return io.NodeOutput({"samples": to_latent(model, edit.given)}, ui=said(cut))
        latents = _start(model, edit, sigmas[0], noise)
        added = _noise(noise, latents, seed)
        patched = apply_edit(model, edit, keeper_of(edit, consistency, chosen, checkpoints))
        callback = latent_preview.prepare_callback(patched, len(sigmas) - 1)
        samples = sample_edit(
            patched, positive, negative, cfg, sampler_name, sigmas, latents, added, seed, callback
        )
        if not torch.isfinite(samples).all():
            remedy = (
                "Run it in a higher precision (--force-fp32 or --bf16-unet); "
                "look for NaN in what masks, hints and LoRA hold."
            )
            raise NodeError(SAMPLER, "model", "the edit has NaN or infinite values.", remedy)
        return io.NodeOutput({"samples": samples}, ui=said(cut))


def _start(model: Any, edit: Edit, sigma: torch.Tensor, noise: str) -> torch.Tensor:
    """What is sampled from: what is kept at the first noise level, or clean."""
    if noise == INVERTED:
        return as_latent(model, kept_path(edit, float(sigma)), sigma)
    return to_latent(model, kept_path(edit, 0.0))


def _noise(kind: str, latents: torch.Tensor, seed: int) -> torch.Tensor:
    """What the host adds to the latents at the first noise level.

    An inverted start has its noise in it already.
    """
    if kind == INVERTED:
        return latents.new_zeros(1).expand_as(latents)
    if kind == FRESH_FOR_ALL:
        return comfy.sample.prepare_noise(latents[:1], seed).expand_as(latents).contiguous()
    return comfy.sample.prepare_noise(latents, seed)


def _sigmas(model: Any, inversion: Inversion, sampler_name: str, start: float) -> torch.Tensor:
    """The sampler's own noise levels for the inverted schedule, from `start` on downwards."""
    sigmas = inversion.sigmas
    if sampler_name in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
        whole = comfy.samplers.KSampler(
            model,
            steps=inversion.steps,
            device="cpu",
            sampler=sampler_name,
            scheduler=inversion.scheduler,
        ).sigmas
        sigmas = whole[whole <= inversion.sigmas[0] * (1 + 1e-4)]
    steps = len(sigmas) - 1
    return sigmas[steps - max(1, round(steps * start)) :]
