"""How much of the source an inversion keeps: frames sampled back from the noisy end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from comfy import model_management
from comfy.k_diffusion.sampling import sample_euler
from torch import Tensor

from ...reporting.grid import captioned_grid
from ...tokenflow_ops import Inversion, spread
from ...tokenflow_ops.measuring.metrics import psnr
from ...tokenflow_ops.passes import Pass
from ..families.latents import to_latent
from ..memory import is_oom
from ..progress import Progress
from ..runs.model_call import ModelCall
from ..runs.patching import patch
from ..source import SourceRun, run_as_sampler
from ..validation.errors import NodeError
from ..video.autoencoder import decode
from .cropping import Size, in_words, size_of

MOST_FRAMES = 4
# How many frames are decoded at once. How much their differences are brightened, as what is lost
# is hard to see.
BLOCK_FRAMES, BRIGHTER = 8, 5
# Noise levels above this leave next to nothing of the source in the picture: Stable Diffusion's end
# at 14.6. The embedded model with its schedule made zero-terminal-SNR (up to 4519, 20 steps) has
# -2.7 dB, with the steps above 100 left out 23.7 dB.
HIGHEST = 100.0
BACK, ALONE = "reconstruction", "autoencoder alone"


def spread_frames(total: int) -> Tensor:
    """Chooses at most MOST_FRAMES of `total` frames, evenly spread from the first to the last."""
    return spread(total, MOST_FRAMES)


def reconstruct_frames(
    node: str,
    model: Any,
    inversion: Inversion,
    negative: Any,
    cfg: float,
    latents: Tensor,
    frames: Tensor,
    frames_per_pass: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Samples some frames from the noisy end by the host's euler, with the source prompt.

    Frames are independent of each other here, so the others need not be sampled.

    Args:
        node: The node's name, for errors.
        model: The user's ModelPatcher, which is not touched.
        inversion: The source's path, with its prompt.
        negative: The negative prompt, a CONDITIONING; it may be empty.
        cfg: Scale of the guidance, 1 for none.
        latents: The source, (N, C, h, w) as on a LATENT socket.
        frames: Numbers of the frames to sample, (n,).
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        progress: Counts the steps, if given.

    Returns:
        (n, C, h, w) in the model's latent space.
    """
    reached = inversion.latents[0]

    def descend(
        model_k: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool | None = None,
    ) -> Tensor:
        nonlocal reached
        reached = sample_euler(model_k, reached.to(x), sigmas, extra_args, callback, disable)
        return x

    patched = patch(model, lambda: SomeFramesRun(node, frames_per_pass, frames), frames_per_pass)
    run_as_sampler(
        descend, patched, inversion.conditioning, negative, cfg, inversion.sigmas, latents, progress
    )
    return reached[frames.to(reached.device)].to(inversion.latents)


class SomeFramesRun(SourceRun):
    """A run in which only some frames go through the model.

    The others count as clean already, and stay as they are.

    Args:
        node: The node's name, for errors.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        frames: Numbers of the frames that go through the model, (n,).
    """

    def __init__(self, node: str, frames_per_pass: int, frames: Tensor) -> None:
        super().__init__(node, frames_per_pass)
        self.frames = frames

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        denoised = [call.x.clone() for _ in call.conds]

        def denoise(frames: Tensor) -> None:
            for whole, part in zip(denoised, call.run(self, Pass(frames)), strict=True):
                whole[frames.to(whole.device)] = part

        self.in_parts(call, self.frames, denoise)
        return denoised


def compare_pictures(
    node: str,
    model: Any,
    vae: Any,
    found: Tensor,
    wanted: Tensor,
    frames: Tensor | None,
    done: Callable[[], None],
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Decodes reconstructed latents, and compares them with the source.

    Args:
        node: The node's name, for errors.
        model: The ModelPatcher, for its latent space.
        vae: The host's VAE.
        found: The reconstructed latents, (n, C, h, w) in the model's latent space.
        wanted: The source's latents, likewise.
        frames: The source, (n, H, W, 3) in [0, 1], as large as what is decoded; without them the
            decoded `wanted` take their place.
        done: Called once for each frame.

    Returns:
        The reconstruction, (n, H, W, 3); source, reconstruction and difference side by side, as
        `captioned_grid` has them; PSNR to the source in dB, (n,), of the reconstruction (BACK) and,
        with frames, of the decoded `wanted` (ALONE).

    Raises:
        NodeError: If the VAE cannot decode the latents.
    """
    back, beside, figures = torch.empty(0), torch.empty(0), {}
    for first in range(0, len(found), BLOCK_FRAMES):
        part = slice(first, first + BLOCK_FRAMES)
        decoded, pure = (_decode(node, model, vae, latents[part]) for latents in (found, wanted))
        source = pure if frames is None else frames[part, ..., :3].float().cpu()
        difference = (BRIGHTER * (source - decoded).abs()).clamp(max=1)
        grid = captioned_grid(
            {"source": source, BACK: decoded, f"difference x{BRIGHTER}": difference}, columns=3
        )
        measured = {BACK: decoded} if frames is None else {BACK: decoded, ALONE: pure}
        if not first:  # room for all: lists would have to be joined, and held twice
            back, beside = (torch.empty(len(found), *one.shape[1:]) for one in (decoded, grid))
            figures = {name: torch.empty(len(found)) for name in measured}
        back[part], beside[part] = decoded, grid
        for name, pictures in measured.items():
            figures[name][part] = psnr(source.movedim(-1, 1), pictures.movedim(-1, 1))
        for _ in decoded:
            done()
    return back, beside, figures


def _decode(node: str, model: Any, vae: Any, latents: Tensor) -> Tensor:
    """The pictures (n, H, W, 3) in [0, 1] of latents (n, C, h, w).

    Raises: NodeError if the VAE cannot decode them.
    """
    return decode(node, vae, to_latent(model, latents), "the inverted latents")


def check_vae(node: str, model: Any, vae: Any, inversion: Inversion, size: Size | None) -> None:
    """Decodes one frame of the inverted clip, before much is sampled to be decoded.

    Args:
        node: The node's name, for errors.
        model: The ModelPatcher, for its latent space.
        vae: The host's VAE.
        inversion: The source's path.
        size: Height and width of the source's frames, None if they are not there.

    Raises:
        NodeError: If the VAE cannot decode it, or not to the size of the source's frames.
    """
    decoded = size_of(_decode(node, model, vae, inversion.latents[-1][:1]))
    if size is not None and size != decoded:
        found = (
            f"frames of {in_words(size)} pixels, the inverted ones decode to {in_words(decoded)}."
        )
        raise NodeError(node, "frames", found, "Connect the frames that were encoded.")


def describe_loss(model: Any, vae: Any | None, found: Tensor, wanted: Tensor) -> str:
    """Says what reconstructed latents lose.

    In dB, mean and lowest frame: PSNR of the decoded frames if there is a VAE that can decode them;
    signal to error of the latents.

    Args:
        model: The ModelPatcher, for its latent space.
        vae: The host's VAE, or None.
        found: The reconstructed latents, (n, C, h, w) in the model's latent space.
        wanted: The source's latents, likewise.

    Returns:
        The words, in one line.
    """
    ratio = f"latents {_mean_and_lowest(_signal_to_error(found, wanted))} signal to error"
    if vae is None:
        return ratio
    try:
        pictures, pure = (vae.decode(to_latent(model, part)).float() for part in (found, wanted))
        decoded = _mean_and_lowest(psnr(pictures, pure))
        return f"{decoded} PSNR to the autoencoder's own pictures; {ratio}"
    except model_management.InterruptProcessingException:
        raise
    except Exception as error:  # whatever a VAE of another kind does, the inversion is good
        if is_oom(error):
            return f"{ratio}; there is no memory to decode them"
        return f"{ratio}; the VAE cannot decode them ({type(error).__name__}: {error})"


def warn_if_lost(node: str, inversion: Inversion, found: Tensor, wanted: Tensor, cfg: float) -> str:
    """Warns of reconstructed latents with more error than source in them, with the likely cause.

    It goes to the log too.

    Args:
        node: The node's name, for the log.
        inversion: The source's path.
        found: The reconstructed latents, (n, C, h, w) in the model's latent space.
        wanted: The source's latents, likewise.
        cfg: The scale of guidance that they were sampled with.

    Returns:
        A line after a line break; "" for an inversion that has kept the source.
    """
    ratios = _signal_to_error(found, wanted)
    lost = int((~(ratios >= 0)).sum())  # NaN is neither
    if not lost:
        return ""
    first, below = float(inversion.sigmas[0]), int((inversion.sigmas <= HIGHEST).sum()) - 1
    if first > HIGHEST and below:
        cause = (
            f"noise levels up to {first:.0f}, as zero-terminal-SNR and EDM models have them, "
            "where nothing of the source is left; "
            f"depth {math.floor(100 * below / inversion.steps) / 100:g} stays below"
        )
    elif cfg > 1:
        cause = f"cfg {cfg:g}; invert with 1"
    else:
        cause = (
            "a model that is told to predict something else than it was trained for "
            "(eps, v, EDM: ModelSampling nodes), a prompt of another clip, or too few steps"
        )
    text = (
        f"LOST: in {lost} of {len(ratios)} frames the error is larger than the source; "
        f"no edit can keep it. Likely cause: {cause}."
    )
    logging.warning("%s: %s", node, text)
    return f"\n{text}"


def _signal_to_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Signal to error of latents (n, C, h, w), in dB, (n,)."""
    signal, error = (part.square().flatten(1).sum(1) for part in (wanted, found - wanted))
    return 10 * torch.log10(signal / error)


def _mean_and_lowest(values: Tensor) -> str:
    return (
        f"{values.mean():.1f} dB (lowest of {len(values)}: {values.min():.1f})"
        if len(values) > 1
        else f"{values.mean():.1f} dB"
    )
