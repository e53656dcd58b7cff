"""Stage 1 on a pipeline: inversion of the source frames and their self-attention features."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..features.descriptors import coarse_to_fine
from ..features.source_features import Consumer, SourceFeatures, compute_at
from ..features.stores import MemoryStore
from ..inversion import Inversion, invert, may_pair
from .denoiser import Denoiser, embed
from .layers import Forward, find, replaced

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@torch.no_grad()
def invert_frames(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    prompt: str | Tensor,
    steps: int = 50,
    iterations: int = 0,
    frames_per_pass: int = 8,
) -> Inversion:
    """Inverts latents to noise, at the noise levels of ComfyUI's "normal".

    The inversion is extrapolated (see `tokenflow_ops.invert`).

    Args:
        pipe: Of SD 1.x or 2.x.
        latents: (N, C, h, w), as `encode_frames` makes them.
        prompt: What the clip shows; words, or their embeddings (1, T, D).
        steps: Steps of the schedule.
        iterations: Additional UNet calls a step.
        frames_per_pass: Frames in one call of the UNet.

    Returns:
        The path of the latents to noise, on the CPU.

    Raises:
        ValueError: For a pipeline that is not one of SD 1.x or 2.x, or NaN and infinite values
            from its UNet.
    """
    denoise, words = Denoiser.of(pipe), embed(pipe, prompt)

    def epsilon(x: Tensor, sigma: Tensor) -> Tensor:
        return (
            x - torch.cat([denoise(part, sigma, words)[0] for part in x.split(frames_per_pass)])
        ) / sigma

    sigmas, path = denoise.sigmas(steps), []
    start = latents.to(pipe.device, torch.float32)
    with pipe.progress_bar(total=steps) as bar:
        pairs = may_pair(steps, iterations)
        for index, x in invert(epsilon, start, sigmas.to(start), iterations, 1, pairs):
            path.append(x.cpu())
            bar.update(int(index < steps))
    if not torch.isfinite(path[-1]).all():
        raise ValueError(
            "the UNet returned NaN or infinite values: load the pipeline in a higher precision"
        )
    return Inversion(sigmas, torch.stack(path[::-1]), words, "diffusers", steps, "normal")


@torch.no_grad()
def extract_features(
    pipe: StableDiffusionPipeline,
    inversion: Inversion,
    noise_level: float = 0.1,
    frames_per_pass: int = 8,
) -> SourceFeatures:
    """Extracts what frames are matched on, at one noise level for all steps.

    It is the decoder's layers from coarse to fine together.

    Args:
        pipe: Of SD 1.x or 2.x.
        inversion: The clip's, as `invert_frames` makes it.
        noise_level: 0 is the cleanest step, 1 the noisiest.
        frames_per_pass: Frames in one call of the UNet.

    Returns:
        The source's features, kept in memory; they do not hold the pipeline.
    """
    denoise = Denoiser.of(pipe)
    backbone = find(denoise.unet)
    layers = backbone.attention
    compute = partial(capture, denoise, inversion, frames_per_pass, pipe.device)
    seen = compute_at(compute, 0, layers, torch.tensor([0]))
    shapes = {layer: (seen[layer].shape[1], seen[layer].shape[2]) for layer in layers}
    level = round((1 - noise_level) * (len(inversion.sigmas) - 2))
    store = MemoryStore()
    features = SourceFeatures(
        inversion, shapes, coarse_to_fine(shapes, backbone.decoder_layers), (level,), store
    )
    compute(features.match_layers, features.steps, store.put)
    return features


def capture(
    denoise: Denoiser,
    inversion: Inversion,
    frames_per_pass: int,
    device: torch.device,
    layers: Iterable[str],
    steps: Iterable[int],
    consume: Consumer,
    frames: Tensor | None = None,
) -> None:
    """Runs the source's latents through the UNet and hands over what its layers saw, step by step.

    With the first four parameters bound it is a
    `tokenflow_ops.features.source_features.Compute`.

    Args:
        denoise: The pipeline's UNet.
        inversion: The clip's.
        frames_per_pass: Frames in one call of the UNet.
        device: Where the UNet runs.
        layers: Paths of self-attention, of which the input is kept, (n, P, C), or of other modules,
            of which it is the output, (n, C, h, w).
        steps: Steps of the inversion.
        consume: Called with what was kept of each call of the UNet, see `Consumer`.
        frames: Frame numbers, (n,); None for all.
    """
    chosen = torch.arange(inversion.frames) if frames is None else frames
    kept: dict[str, Tensor] = {}
    with replaced(denoise.unet, {layer: _recorder(layer, kept) for layer in layers}):
        for step in steps:
            sigma, first = inversion.sigmas[step].to(device), 0
            for part in inversion.latents[step][chosen].split(frames_per_pass):
                denoise(part.to(device), sigma, inversion.conditioning)
                consume(step, dict(kept), first, len(chosen))
                first += len(part)


def _recorder(layer: str, kept: dict[str, Tensor]) -> Forward:
    def forward(module: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = own(x, *args, **kwargs)
        kept[layer] = x if layer.endswith("attn1") else out
        return out

    return forward
