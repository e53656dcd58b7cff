"""A pipeline's UNet in ComfyUI's coordinates and at its noise levels, so that both give the same
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Denoiser:
    """Clean latents from noisy ones, which are counted as noise over signal: x = clean + sigma *
    noise.

    diffusers' schedulers count x / sqrt(1 + sigma ** 2); of the pipeline's own only the training's
    noise levels are used. unet: a UNet2DConditionModel. log_sigmas: (T,) float32, of every training
    step, ascending. predicts_v: whether it predicts v, not noise.
    """

    unet: Any
    log_sigmas: Tensor
    predicts_v: bool

    @classmethod
    def of(cls, pipe: StableDiffusionPipeline) -> Denoiser:
        """Raises: ValueError for a pipeline whose UNet needs more than latents, noise level and
        prompt, or has another noise schedule.
        """
        unet, schedule = (
            getattr(pipe.unet, "_orig_mod", pipe.unet),
            pipe.scheduler.config,
        )  # a compiled UNet's layers cannot be replaced
        if (
            hasattr(pipe, "controlnet")
            or unet.config.addition_embed_type
            or unet.config.class_embed_type
            or unet.config.encoder_hid_dim_type
        ):
            raise ValueError(
                "the UNet asks for more than a prompt: take a plain SD 1.x or 2.x; SDXL, ControlNet and the like run in ComfyUI"
            )
        if unet.config.in_channels != unet.config.out_channels:
            raise ValueError(
                f"the UNet takes {unet.config.in_channels} channels, an inpainting model's: take one for text to image"
            )
        if (
            schedule.beta_schedule != "scaled_linear"
            or schedule.trained_betas is not None
            or schedule.get("rescale_betas_zero_snr")
        ):
            raise ValueError(
                f"the noise schedule must be Stable Diffusion's, scaled_linear, got {schedule.beta_schedule}"
            )
        if schedule.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the UNet must predict epsilon or v_prediction, got {schedule.prediction_type}"
            )
        ends = schedule.beta_start**0.5, schedule.beta_end**0.5
        signal = (
            1 - torch.linspace(*ends, schedule.num_train_timesteps, dtype=torch.float64) ** 2
        ).cumprod(0)
        return cls(
            unet,
            ((1 - signal) / signal).sqrt().log().float(),
            schedule.prediction_type == "v_prediction",
        )

    def sigmas(self, steps: int) -> Tensor:
        """ComfyUI's scheduler "normal": (steps + 1,) float32, at evenly spread training steps from
        the last to the first, then 0.
        """
        at = torch.linspace(len(self.log_sigmas) - 1, 0, steps)
        share, low, high = (
            at.frac(),
            self.log_sigmas[at.floor().long()],
            self.log_sigmas[at.ceil().long()],
        )
        return torch.cat([((1 - share) * low + share * high).exp(), torch.zeros(1)])

    def __call__(self, x: Tensor, sigma: Tensor, prompts: Tensor) -> Tensor:
        """Latents x (n, C, h, w) float32 at one sigma, for R prompts (R, T, D): (R, n, C, h, w)
        float32.
        """
        rows, count = len(prompts), len(x)
        # As ComfyUI does: the UNet is told the training step with the closest noise level.
        timestep = (self.log_sigmas - sigma.cpu().log()).abs().argmin().to(x.device)
        scaled = (x / (sigma**2 + 1) ** 0.5).to(self.unet.dtype)
        context = prompts.to(scaled).repeat_interleave(count, 0)
        out = self.unet(
            scaled.repeat(rows, 1, 1, 1), timestep, encoder_hidden_states=context, return_dict=False
        )[0]
        out = out.to(x).unflatten(0, (rows, count))
        if self.predicts_v:
            return x / (sigma**2 + 1) - out * sigma / (sigma**2 + 1) ** 0.5
        return x - out * sigma


def embed(pipe: StableDiffusionPipeline, prompt: str | Tensor) -> Tensor:
    """(1, T, D), by the pipeline's text encoder; embeddings are taken as they are."""
    return (
        prompt
        if isinstance(prompt, Tensor)
        else pipe.encode_prompt(prompt, pipe.device, 1, False)[0]
    )
