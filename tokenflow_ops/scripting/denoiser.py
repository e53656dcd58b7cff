"""A pipeline's UNet in ComfyUI's coordinates and at its noise levels.

So both give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass
class Denoiser:
    """Makes clean latents from noisy ones, in which noise is counted over signal.

    That is x = clean + sigma * noise; diffusers' schedulers count x / sqrt(1 + sigma ** 2). Of the
    pipeline's own only the training's noise levels are used.

    Attributes:
        unet: A UNet2DConditionModel.
        log_sigmas: (T,) float32, of every training step, ascending.
        predicts_v: Whether it predicts v, not noise.
    """

    unet: Any
    log_sigmas: Tensor
    predicts_v: bool

    @classmethod
    def of(cls, pipe: StableDiffusionPipeline) -> Denoiser:
        """Takes the UNet and the training's noise levels of a pipeline.

        Args:
            pipe: Of SD 1.x or 2.x.

        Returns:
            The denoiser; it shares the pipeline's UNet.

        Raises:
            ValueError: For a pipeline whose UNet needs more than latents, noise level and prompt,
                or predicts something else than noise or v, or has another noise schedule.
        """
        # A compiled UNet's layers cannot be replaced.
        unet, schedule = getattr(pipe.unet, "_orig_mod", pipe.unet), pipe.scheduler.config
        if (
            hasattr(pipe, "controlnet")
            or unet.config.addition_embed_type
            or unet.config.class_embed_type
            or unet.config.encoder_hid_dim_type
        ):
            raise ValueError(
                "the UNet asks for more than a prompt: take a plain SD 1.x or 2.x; "
                "SDXL, ControlNet and the like run in ComfyUI"
            )
        if unet.config.in_channels != unet.config.out_channels:
            raise ValueError(
                f"the UNet takes {unet.config.in_channels} channels, an inpainting model's: "
                "take one for text to image"
            )
        if (
            schedule.beta_schedule != "scaled_linear"
            or schedule.trained_betas is not None
            or schedule.get("rescale_betas_zero_snr")
        ):
            raise ValueError(
                "the noise schedule must be Stable Diffusion's, scaled_linear, "
                f"got {schedule.beta_schedule}"
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
        """Returns the noise levels of ComfyUI's scheduler "normal", (steps + 1,) float32.

        They are those of evenly spread training steps from the last to the first, then 0.
        """
        at = torch.linspace(len(self.log_sigmas) - 1, 0, steps)
        low, high = self.log_sigmas[at.floor().long()], self.log_sigmas[at.ceil().long()]
        share = at.frac()
        return torch.cat([((1 - share) * low + share * high).exp(), torch.zeros(1)])

    def __call__(self, x: Tensor, sigma: Tensor, prompts: Tensor) -> Tensor:
        """Denoises latents at one noise level, for several prompts.

        Args:
            x: Noisy latents, (n, C, h, w) float32.
            sigma: Their noise level, one number.
            prompts: Embeddings of R prompts, (R, T, D).

        Returns:
            Clean latents, (R, n, C, h, w) float32.
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
    """Returns a prompt's embeddings by the pipeline's text encoder.

    Args:
        pipe: Of SD 1.x or 2.x.
        prompt: Words, or embeddings, which are taken as they are.

    Returns:
        (1, T, D).
    """
    return (
        prompt
        if isinstance(prompt, Tensor)
        else pipe.encode_prompt(prompt, pipe.device, 1, False)[0]
    )
