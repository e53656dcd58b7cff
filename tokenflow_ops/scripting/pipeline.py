"""A clip through a pipeline: frames in, frames out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..injection import Injection
from ..matching.build import build_correspondences
from ..propagation import CARRY_UNTIL, DEEP_FEATURES
from .sampling import PLUG_AND_PLAY, sample_edit
from .source import extract_features, invert_frames

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def edit_video(
    pipe: StableDiffusionPipeline,
    frames: Tensor,
    source_prompt: str | Tensor,
    edit_prompt: str | Tensor,
    negative_prompt: str | Tensor = "",
    steps: int = 50,
    guidance_scale: float = 7.5,
    keyframe_interval: int = 8,
    injection: Injection | None = PLUG_AND_PLAY,
    seed: int = 0,
    propagation: str = DEEP_FEATURES,
    carry_until: float = CARRY_UNTIL,
    frames_per_pass: int = 8,
) -> Tensor:
    """Edits a clip consistently, with the graph's defaults and the same numbers.

    Args:
        pipe: Of SD 1.x or 2.x, on any device, in any float type; it is left as it was. Its
            scheduler's kind does not matter.
        frames: (N, H, W, 3) in [0, 1], H and W multiples of 8.
        source_prompt: What they show; words, or their embeddings (1, T, D).
        edit_prompt: What they shall show, likewise.
        negative_prompt: What they shall not show, likewise.
        steps: Steps of the inversion and of the edit.
        guidance_scale: As of `sample_edit`.
        keyframe_interval: Frames per keyframe.
        injection: As of `sample_edit`.
        seed: Of the keyframes, which are drawn anew at every step.
        propagation: As of `sample_edit`.
        carry_until: As of `sample_edit`.
        frames_per_pass: Frames in one call of the UNet and the VAE.

    Returns:
        (N, H, W, 3) float32 in [0, 1], on the CPU.

    Raises:
        ValueError: For frames or a pipeline that do not fit.
    """
    latents = encode_frames(pipe, frames, frames_per_pass)
    inversion = invert_frames(pipe, latents, source_prompt, steps, frames_per_pass=frames_per_pass)
    features = extract_features(pipe, inversion, frames_per_pass=frames_per_pass)
    matches = build_correspondences(features, keyframe_interval, seed, device=pipe.device)
    edited = sample_edit(
        pipe,
        matches,
        edit_prompt,
        negative_prompt,
        guidance_scale,
        injection,
        propagation,
        carry_until,
        frames_per_pass=frames_per_pass,
    )
    return decode_latents(pipe, edited, frames_per_pass)


@torch.no_grad()
def encode_frames(
    pipe: StableDiffusionPipeline, frames: Tensor, frames_per_pass: int = 8
) -> Tensor:
    """Encodes frames to latents as the UNet takes them: the mean that the VAE encodes.

    Args:
        pipe: Of SD 1.x or 2.x.
        frames: (N, H, W, 3) in [0, 1], H and W multiples of 8.
        frames_per_pass: Frames in one call of the VAE.

    Returns:
        (N, C, H / 8, W / 8) float32, on the pipeline's device.

    Raises:
        ValueError: For other shapes.
    """
    cell = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    if (
        frames.ndim != 4
        or frames.shape[-1] != 3
        or not len(frames)
        or frames.shape[1] % cell
        or frames.shape[2] % cell
    ):
        shape = tuple(frames.shape)
        raise ValueError(
            f"frames must be (N, H, W, 3) with H and W multiples of {cell}, got {shape}"
        )
    found = []
    for part in frames.split(frames_per_pass):
        pixels = part.movedim(-1, 1).to(pipe.device, pipe.vae.dtype) * 2 - 1
        found.append(
            pipe.vae.encode(pixels).latent_dist.mode().float() * pipe.vae.config.scaling_factor
        )
    return torch.cat(found)


@torch.no_grad()
def decode_latents(
    pipe: StableDiffusionPipeline, latents: Tensor, frames_per_pass: int = 8
) -> Tensor:
    """Decodes latents to frames.

    Args:
        pipe: Of SD 1.x or 2.x.
        latents: (N, C, h, w), as `encode_frames` makes them.
        frames_per_pass: Frames in one call of the VAE.

    Returns:
        (N, 8 h, 8 w, 3) float32 in [0, 1], on the CPU.
    """
    found = []
    for part in latents.split(frames_per_pass):
        scaled = (part / pipe.vae.config.scaling_factor).to(pipe.device, pipe.vae.dtype)
        found.append(
            (pipe.vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()
        )
    return torch.cat(found)
