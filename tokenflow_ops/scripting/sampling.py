"""Stage 2 on a pipeline: the edit from the inverted noise (paper, section 4.2).

The sampler is the deterministic DDIM (Euler).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..backbone import Backbone
from ..editing import Left, StepPlan, edit_again, edit_step
from ..features.source_features import compute_at
from ..injection import Injection
from ..keyframes import JOINT_KEYFRAMES
from ..matching.correspondence import Correspondences
from ..passes import Pass
from ..propagation import (
    CARRY_UNTIL,
    DEEP_FEATURES,
    PROPAGATIONS,
    REPEATS,
    carries_pictures,
)
from .calls import forwards
from .denoiser import Denoiser, embed
from .layers import find, replaced
from .source import capture

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PLUG_AND_PLAY = Injection()
T = TypeVar("T")


@torch.no_grad()
def sample_edit(
    pipe: StableDiffusionPipeline,
    correspondences: Correspondences,
    prompt: str | Tensor,
    negative_prompt: str | Tensor = "",
    guidance_scale: float = 7.5,
    injection: Injection | None = PLUG_AND_PLAY,
    propagation: str = DEEP_FEATURES,
    carry_until: float = CARRY_UNTIL,
    attended_keyframes: int = JOINT_KEYFRAMES,
    frames_per_pass: int = 8,
) -> Tensor:
    """Samples the edited latents, with the node TokenFlow Sampler's choices and defaults.

    Args:
        pipe: Of SD 1.x or 2.x; it is left as it was.
        correspondences: The clip's matches; they hold its inversion.
        prompt: What the clip shall show; words, or their embeddings (1, T, D).
        negative_prompt: What it shall not show, likewise.
        guidance_scale: Weight of classifier-free guidance; at 1 the negative prompt is not used.
        injection: Plug-and-Play, None for none.
        propagation: What frames between keyframes take from them, one of PROPAGATIONS.
        carry_until: Share of SD's schedule, by its noise, in which the denoised latents are made
            of the keyframes' too.
        attended_keyframes: How many keyframes are edited together; a clip with more is
            edited in windows.
        frames_per_pass: How many of the other frames go through the UNet in one call.

    Returns:
        (N, C, h, w) float32.

    Raises:
        ValueError: For another propagation, or a pipeline that is not one of SD 1.x or 2.x.
    """
    if propagation not in PROPAGATIONS:
        raise ValueError(f"propagation must be one of {PROPAGATIONS}, got {propagation!r}")
    prompts = [prompt] if guidance_scale == 1 else [prompt, negative_prompt]
    words = torch.cat([embed(pipe, each) for each in prompts])
    denoise, inversion = Denoiser.of(pipe), correspondences.features.inversion
    backbone, deep = find(denoise.unet), propagation == DEEP_FEATURES
    x, sigmas = inversion.latents[0].to(pipe.device), inversion.sigmas.to(pipe.device)
    left: Left | None = None
    for step in pipe.progress_bar(range(len(sigmas) - 1)):
        plan = step_plan(
            correspondences, step, backbone, injection, deep, carry_until, attended_keyframes
        )
        evaluation = Evaluation(
            denoise,
            words,
            x,
            sigmas[step],
            plan,
            backbone.deep if deep else (),
            frames_per_pass,
        )
        edited = edit_again(evaluation, left) if left else edit_step(evaluation, plan)
        denoised = edited.denoised
        left = edited.left if isinstance(edited.left, Left) else None
        prompted, plain = denoised[0], denoised[-1]
        guided = prompted if len(denoised) == 1 else plain + (prompted - plain) * guidance_scale
        x = x + (x - guided) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
    return x


def step_plan(
    correspondences: Correspondences,
    step: int,
    backbone: Backbone,
    injection: Injection | None,
    deep: bool,
    carry_until: float,
    jointly: int,
) -> StepPlan:
    """Plans what a step does.

    Args:
        correspondences: The clip's matches.
        step: Step of the inversion, from 0.
        backbone: The model's layers.
        injection: As of `sample_edit`.
        deep: Whether frames take all that lies below full resolution as a whole.
        carry_until: As of `sample_edit`.
        jointly: How many keyframes are edited together.

    Returns:
        The step's plan.
    """
    inversion = correspondences.features.inversion
    noise = backbone.parameterization.noise_over_signal(float(inversion.sigmas[step]))
    attention = (
        backbone.injected_attention(injection.layers)
        if injection and injection.attention_at(noise)
        else ()
    )
    hidden = (
        backbone.hidden_layers(correspondences.features.shapes, injection.features_in)
        if injection and injection.features_at(noise)
        else ()
    )
    along = {path: backbone.beside(path) for path in hidden}
    shallow = backbone.shallow if deep else None
    ends = backbone.parameterization.noise_over_signal(float(inversion.sigmas[step + 1]))
    carries = carries_pictures(carry_until, noise, ends)
    return StepPlan(
        correspondences,
        step,
        attention,
        hidden,
        along,
        shallow,
        carries,
        jointly,
        guides_along=deep,
        keeps=REPEATS.takes if deep and not carries and REPEATS.follow(noise, ends) else None,
        merges=deep,
    )


@dataclass
class Evaluation:
    """One step's evaluation of the UNet, a `tokenflow_ops.editing.Denoiser`.

    Attributes:
        denoise: The pipeline's UNet.
        words: Embeddings of the prompts, (R, T, D).
        x: The noisy frames, (N, C, h, w).
        sigma: Their noise level, one number.
        plan: What the step does.
        deep: The blocks below full resolution that passes are asked about, or none.
        frames_per_pass: Frames in one call of the UNet, for those between keyframes.
    """

    denoise: Denoiser
    words: Tensor
    x: Tensor
    sigma: Tensor
    plan: StepPlan
    deep: tuple[str, ...]
    frames_per_pass: int

    @property
    def lists(self) -> int:
        return len(self.words)

    def run(self, work: Pass, lists: int | None = None) -> list[Tensor]:
        """Denoises a pass's frames.

        Args:
            work: The pass.
            lists: For how many of the prompts, the first ones; None for all.

        Returns:
            For each of these the denoised frames (n, C, h, w).
        """
        words, layers = self.words[:lists], tuple(self.plan.features.shapes)
        rows, size = [(row, 0) for row in range(len(words))], (self.x.shape[2], self.x.shape[3])
        with replaced(self.denoise.unet, forwards(work, rows, layers, self.deep, size)):
            return list(self.denoise(self.x[work.frames.to(self.x.device)], self.sigma, words))

    def source(self, frames: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Computes the source's features of some frames at this noise level.

        Args:
            frames: Frame numbers, (n,).
            names: Paths of the layers.

        Returns:
            By layer the tokens (n, P, C) or hidden features (n, C, h, w).
        """
        names = tuple(names)
        if not names:
            return {}
        inversion = self.plan.features.inversion
        compute = partial(capture, self.denoise, inversion, self.frames_per_pass, self.x.device)
        return compute_at(compute, self.plan.step, names, frames)

    def in_parts(self, frames: Tensor, work: Callable[[Tensor], T]) -> list[T]:
        """Does the work for `frames_per_pass` frames at once, in order.

        Args:
            frames: Frame numbers, (n,).
            work: Called with one part of `frames` after the other.

        Returns:
            What `work` has returned for each part.
        """
        return [work(part) for part in frames.split(self.frames_per_pass)] if len(frames) else []
