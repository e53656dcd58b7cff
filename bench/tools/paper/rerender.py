"""Rerender-A-Video whole, as its authors' code makes a clip (arXiv 2306.07954).

Keyframes are sampled under its constraints, one after the other; the frames between them are
patches of theirs. As in all rows of the table sampling starts from the inverted source with
Plug-and-Play, where the authors start from noise with a ControlNet, and optical flow is DIS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from tokenflow_pack.host.families.latents import as_latent
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.sampling.apply import Apply
from tokenflow_pack.tokenflow_ops import Inversion
from tokenflow_pack.tokenflow_ops.baselines.fusion import OCCLUSION_WINDOW, occluded
from tokenflow_pack.tokenflow_ops.carrying.motion import pixels
from tokenflow_pack.tokenflow_ops.measuring.metrics import dis_flow, warp
from torch import Tensor
from torch.nn import functional as F

import nodes
from bench.tools.case import Editable, channels_first
from bench.tools.keyframes.blending import between_keyframes

MODE = "rerender"
# Shares of the schedule in which pixels are fused, and how far; both as in the authors' code.
PIXELS_FROM, PIXELS_UNTIL, STRENGTH = 0.5, 0.8, 0.5
LOST = 0.125  # difference in [0, 1] from which on the corrected code is no better


class Keyframes(Editable):
    """Every n-th frame of a clip and the last one, with the clip's prompts. numbers: theirs."""

    def __init__(self, clip: Editable) -> None:
        last = len(clip.source) - 1
        self.clip, self.numbers = clip, [*range(0, last, clip.settings.interval), last]
        super().__init__(clip.world, clip.settings, clip.source[self.numbers], clip.caption)

    def asked(self, surface: str) -> str:
        return self.clip.asked(surface)


@dataclass(frozen=True)
class Fusion:
    """What noisy keyframes are mixed with in the middle steps.

    inversion: of their source. latents: clean ones, (k, C, h, w) in the model's latent space.
    weight: (k, 1, h, w) in [0, 1].
    """

    inversion: Inversion
    latents: Tensor
    weight: Tensor

    @classmethod
    def none(cls, inversion: Inversion) -> Fusion:
        clean = inversion.latents[-1]
        return cls(inversion, clean.clone(), torch.zeros_like(clean[:, :1]))

    def mixed(self, x: Tensor, sigma: float) -> Tensor:
        """Noisy latents mixed with the fused ones under the noise that their source has there."""
        noise = self.inversion.latents_at(sigma) - self.inversion.latents[-1]
        return torch.lerp(x, (self.latents + noise).to(x), self.weight.to(x))


def fused_euler(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    fusion: Fusion,
) -> Tensor:
    """Euler's method as the host's samplers are called, with pixels fused in the middle steps."""
    steps = len(sigmas) - 1
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        if PIXELS_FROM * steps < step < PIXELS_UNTIL * steps:
            x = fusion.mixed(x, float(sigma))
        denoised = model(x, sigma.expand(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = torch.lerp(denoised, x, following / sigma)
    return x


def rerendered(
    keyframes: Keyframes, found: Any, surface: str, model: Any, injected: bool = True
) -> Tensor:
    """An edit of the whole clip, (N, H, W, 3). found: correspondences of the keyframes."""
    sample = Sampling(keyframes, found, surface, model, injected)
    inversion = found.features.inversion
    source, fusion = channels_first(keyframes.source), Fusion.none(inversion)
    edited = sample(fusion)
    for number in range(1, len(edited)):
        # All are sampled again, as each looks at the one before, whose final form is known now.
        picture, hidden = overlaid(source, edited, number)
        code = encoded(keyframes.world.vae, picture)
        fusion.latents[number] = model.model.process_latent_in(code)[0]
        visible = 1 - F.adaptive_max_pool2d(hidden[None], code.shape[-2:])
        fusion.weight[number] = STRENGTH * visible
        edited = sample(fusion)
    clip = channels_first(keyframes.clip.source)
    return between_keyframes(clip, edited, keyframes.numbers).movedim(1, -1)


class Sampling:
    """The mode's sampling of all keyframes together."""

    def __init__(
        self, keyframes: Keyframes, found: Any, surface: str, model: Any, injected: bool
    ) -> None:
        self.world, self.cfg = keyframes.world, keyframes.settings.cfg
        self.inversion = found.features.inversion
        self.prompts = keyframes.edit_prompt(surface), self.world.encode("")
        self.model = Apply.execute(
            model=model,
            correspondences=found,
            injection=PlugAndPlay.execute().args[0] if injected else None,
            consistency=MODE,
            frames=keyframes.source,
        ).args[0]

    def __call__(self, fusion: Fusion) -> Tensor:
        """The keyframes, decoded, (k, 3, H, W)."""
        sampler = comfy.samplers.KSAMPLER(fused_euler, {"fusion": fusion})
        sigmas = self.inversion.sigmas
        noisy = {"samples": as_latent(self.model, self.inversion.latents[0], sigmas[0])}
        inputs = (False, 0, self.cfg, *self.prompts, sampler, sigmas, noisy)
        return channels_first(
            self.world.decode(SamplerCustom.execute(self.model, *inputs).args[0])
        ).float()


def overlaid(source: Tensor, edited: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """A keyframe with what it shows of the previous and, above that, of the first one.

    source, edited: the keyframes, (k, 3, H, W).

    Returns: (1, 3, H, W), and what neither shows, (1, H, W) from 0 to 1.
    """
    picture, missing = edited[number], torch.ones(source.shape[2:], dtype=torch.bool)
    for other in (number - 1, 0):
        flow, unseen = seen_in(source[number], source[other])
        picture = torch.lerp(warp(edited[other], flow), picture, softened(unseen))
        missing = missing & unseen
    return picture[None], softened(missing)


def seen_in(frame: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The flow from a frame (3, H, W) to another one, and which pixels that one does not show."""
    flow = dis_flow(frame, other)
    x, y = pixels(*frame.shape[1:]) + flow
    height, width = x.shape
    outside = (x < 0) | (y < 0) | (x > width - 1) | (y > height - 1)
    return flow, occluded(flow, dis_flow(other, frame)) | outside


def softened(hidden: Tensor) -> Tensor:
    """Hidden pixels (H, W) grown, with a soft edge, (1, H, W) from 0 to 1."""
    own, side = hidden[None].float(), OCCLUSION_WINDOW
    grown = F.max_pool2d(own, side, 1, side // 2)
    soft = F.avg_pool2d(F.pad(grown[None], (side // 2,) * 4, mode="reflect"), side, 1)[0]
    return (soft + own).clamp(max=1)


def encoded(vae: Any, picture: Tensor) -> Tensor:
    """A picture (1, 3, H, W) encoded so that less is lost when it is decoded, (1, C, h, w).

    What a second way through the autoencoder changes is taken off beforehand, but where that makes
    it worse.
    """

    def encode(pictures: Tensor) -> Tensor:
        code: Tensor = nodes.VAEEncode().encode(vae, pictures.movedim(1, -1))[0]["samples"]
        return code

    def decode(code: Tensor) -> Tensor:
        return channels_first(nodes.VAEDecode().decode(vae, {"samples": code})[0])

    code = encode(picture)
    corrected = 2 * code - encode(decode(code))
    off = (decode(corrected) - picture).abs().mean(1, keepdim=True) > LOST
    worse = F.max_pool2d(F.adaptive_max_pool2d(off.float(), code.shape[-2:]), 3, 1, 1) > 0
    return torch.where(worse, code, corrected)
