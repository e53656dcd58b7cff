"""How much of the source an inversion keeps: a few frames sampled back from the noisy end."""

from __future__ import annotations

from typing import Any

import torch
from comfy import model_management
from comfy.k_diffusion.sampling import sample_euler
from torch import Tensor

from ..tokenflow_ops import Inversion
from ..tokenflow_ops.metrics import psnr
from .passes import Pass
from .patching import ModelCall, patch
from .source import SourceRun, run_as_sampler

MOST_FRAMES = 4


def spread_frames(total: int) -> Tensor:
    """At most MOST_FRAMES of `total` frames, evenly spread from the first to the last."""
    return torch.linspace(0, total - 1, min(total, MOST_FRAMES)).round().long()


def reconstruct_frames(
    node: str, model: Any, inversion: Inversion, negative: Any, cfg: float, latents: Tensor, frames: Tensor, asked: int = 0
) -> Tensor:
    """Some frames sampled from the noisy end by the host's euler, with the source prompt.

    Frames are independent of each other here, so the rest need not be sampled.

    node: the node's name for errors. latents: (N, C, h, w) the source, as on a LATENT socket. frames: (n,). asked: frames per pass, or 0.
    Returns: (n, C, h, w) in the model's latent space.
    """
    reached = inversion.latents[0]

    def descend(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool | None = None) -> Tensor:
        nonlocal reached
        reached = sample_euler(model_k, reached.to(x), sigmas, extra_args, callback, disable)
        return x

    patched = patch(model, lambda: SomeFramesRun(node, asked, frames), asked)
    run_as_sampler(descend, patched, inversion.conditioning, negative, cfg, inversion.sigmas, latents)
    return reached[frames.to(reached.device)].to(inversion.latents)


class SomeFramesRun(SourceRun):
    """Only some frames go through the model. The others are taken for clean already, and stay as they are."""

    def __init__(self, node: str, asked: int, frames: Tensor) -> None:
        super().__init__(node, asked)
        self.frames = frames

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        denoised = [call.x.clone() for _ in call.conds]

        def denoise(frames: Tensor) -> None:
            for whole, part in zip(denoised, call.run(self, Pass(frames)), strict=True):
                whole[frames.to(whole.device)] = part

        self.in_parts(call, self.frames, denoise)
        return denoised


def describe_loss(model: Any, vae: Any | None, found: Tensor, wanted: Tensor) -> str:
    """What reconstructed latents `found` lose against `wanted`, both (n, C, h, w) in the model's latent space, in words.

    In dB, mean and lowest frame: PSNR of the decoded frames if there is a VAE that can decode them; signal to error of the latents.
    """
    signal, error = (part.square().flatten(1).sum(1) for part in (wanted, found - wanted))
    ratio = f"latents {_mean_and_lowest(10 * torch.log10(signal / error))} signal to error"
    if vae is None:
        return ratio
    process_out = model.get_model_object("latent_format").process_out
    try:
        pictures, pure = (vae.decode(process_out(part)).float() for part in (found, wanted))
        return f"{_mean_and_lowest(psnr(pictures, pure))} PSNR to the autoencoder's own pictures; {ratio}"
    except model_management.InterruptProcessingException:
        raise
    except Exception as error:  # whatever a VAE of another kind does, the inversion is good
        return f"{ratio}; the VAE cannot decode them ({type(error).__name__}: {error})"


def _mean_and_lowest(values: Tensor) -> str:
    return f"{values.mean():.1f} dB (lowest of {len(values)}: {values.min():.1f})" if len(values) > 1 else f"{values.mean():.1f} dB"
