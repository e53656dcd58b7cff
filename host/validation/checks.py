"""Checks of what users connect, before any work is done."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from torch import Tensor

from ...tokenflow_ops import Injection, Inversion
from ...tokenflow_ops.backbone import Backbone
from ..families import backbone_of
from ..families.latents import for_host, of_frames
from ..families.transformer import refusal
from .errors import NodeError
from .fingerprint import is_same_model

KNOWN = "an SD 1.x, SD 2.x, SDXL, SD 3, Flux, Chroma, Lumina 2 or Z-Image model"
# Rows and columns of the smallest latents: halved twice there is nothing left to match.
SMALLEST = 3
# Relative error of a frame's latents. Another device or precision of the VAE stays below.
SAME_FRAME = 0.05


def check_model(node: str, model: Any) -> Backbone:
    """Checks that TokenFlow can work on a model.

    Args:
        node: The node's name, for errors.
        model: The ModelPatcher.

    Returns:
        The model's layers.

    Raises:
        NodeError: For other models.
    """
    found = backbone_of(model)
    kind = (
        type(model.model.model_config).__name__
        if hasattr(model.model, "model_config")
        else type(model.model).__name__
    )
    if found is None:
        reason = refusal(getattr(model.model, "diffusion_model", None))
        reason = reason or "is no image model whose attention TokenFlow knows"
        raise NodeError(node, "model", f"{kind} {reason}.", f"Connect {KNOWN}.")
    if any(
        isinstance(module, SpatialVideoTransformer)
        for module in model.model.diffusion_model.modules()
    ):
        raise NodeError(
            node,
            "model",
            f"{kind} is a video model, which attends over time by itself.",
            f"Connect {KNOWN}.",
        )
    return found[1]


def check_latents(
    node: str, model: Any, latents: dict[str, Any], socket: str = "latents"
) -> Tensor:
    """Checks the samples of a LATENT.

    Args:
        node: The node's name, for errors.
        model: The ModelPatcher that is to take them.
        latents: The LATENT.
        socket: The input's name, for errors.

    Returns:
        The samples, (N, C, h, w) float32.

    Raises:
        NodeError: If they are no batch of image latents that this model takes.
    """
    samples = latents["samples"]
    nested = getattr(samples, "is_nested", False)
    pictures = for_host(model, torch.empty(1, 1, 1, 1)).ndim == 5
    if pictures and not nested and samples.ndim == 5 and samples.shape[2] == 1:
        samples = of_frames(samples)
    if nested or samples.ndim != 4:
        shape = "nested" if nested else tuple(samples.shape)
        raise NodeError(
            node,
            socket,
            f"latents of shape {shape}, which are a video model's.",
            "Encode the frames one by one and join them (Rebatch Images to 1, VAE Encode, Rebatch "
            "Latents): (N, C, 1, h, w)."
            if pictures
            else "Encode the frames with the VAE of an image model: (N, C, h, w).",
        )
    if len(samples) == 0 or samples.numel() == 0:
        raise NodeError(
            node,
            socket,
            f"an empty batch of latents {tuple(samples.shape)}.",
            "Connect at least one frame.",
        )
    if not samples.is_floating_point():
        raise NodeError(
            node,
            socket,
            f"latents of type {samples.dtype}.",
            "Connect latents as VAE Encode gives them.",
        )
    if min(samples.shape[2:]) < SMALLEST:
        found = f"latents of {samples.shape[3]} x {samples.shape[2]}, pictures of a few pixels."
        raise NodeError(
            node,
            socket,
            found,
            f"Encode larger frames: at least {SMALLEST} x {SMALLEST} latent pixels.",
        )
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise NodeError(
            node,
            socket,
            f"latents with {samples.shape[1]} channels, the model takes {channels}.",
            "Encode the frames with the VAE that belongs to the model.",
        )
    if not torch.isfinite(samples).all():
        bad = (~torch.isfinite(samples)).flatten(1).any(1).nonzero().flatten().tolist()
        raise NodeError(
            node,
            socket,
            f"NaN or infinite latents in frames {bad[:8]}.",
            "Check the source images and the VAE's precision (--fp32-vae may help).",
        )
    return samples.float()


def noise_mask(
    node: str, latents: dict[str, Any], frames: int, socket: str = "latents"
) -> Tensor | None:
    """Returns the mask inside of which a LATENT says to sample.

    Args:
        node: The node's name, for errors.
        latents: The LATENT.
        frames: How many frames it has.
        socket: The input's name, for errors.

    Returns:
        (1 or N, H, W) in [0, 1], or None without one.

    Raises:
        NodeError: If there is neither one mask nor one for each frame.
    """
    mask = latents.get("noise_mask")
    if mask is None:
        return None
    masks: Tensor = mask.reshape(-1, *mask.shape[-2:]).float().cpu().clamp(0, 1)
    if len(masks) not in (1, frames):
        found = f"a noise mask of {len(masks)} for {frames} frames."
        raise NodeError(node, socket, found, "Set one noise mask for all frames, or one for each.")
    return masks


def others_kept(latents: dict[str, Any]) -> dict[str, Any]:
    """Returns what a LATENT holds beside its samples and belongs to what became of them too.

    The host's samplers pass it on as well. The noise mask is left out: under the host's samplers it
    would keep the inverted noise outside of itself, and the inversion has it.
    """
    return {
        name: value
        for name, value in latents.items()
        if name not in ("samples", "noise_mask") and not name.startswith("downscale_ratio")
    }


def check_injection(node: str, backbone: Backbone, injection: Injection | None) -> None:
    """Checks that a model has layers that Plug-and-Play injects into, if it injects.

    Args:
        node: The node's name, for errors.
        backbone: The model's layers.
        injection: Plug-and-Play, or None.

    Raises:
        NodeError: If the model has none.
    """
    if (
        injection is None
        or not (injection.attention_until or injection.features_until)
        or backbone.injected_attention(injection.layers)
    ):
        return
    raise NodeError(
        node,
        "injection",
        "Plug-and-Play injects from the decoder's second block with self-attention on; "
        f"this model's are {', '.join(backbone.blocks)}.",
        "Disconnect it; "
        "a start below 1 or a ControlNet keeps the source's structure with any model.",
    )


def check_same_model(node: str, model: Any, inversion: Inversion, socket: str = "model") -> None:
    """Checks that an inversion was made by this model and noise schedule.

    The model's precision does not matter.

    Args:
        node: The node's name, for errors.
        model: The ModelPatcher.
        inversion: The inversion.
        socket: The input's name, for errors.

    Raises:
        NodeError: If it was made by another one.
    """
    if not is_same_model(model, inversion.fingerprint):
        raise NodeError(
            node,
            socket,
            "this model is not the one the source was inverted with.",
            "Connect the same checkpoint as in DDIM Invert Video (in any precision, "
            "a LoRA on top is fine), or invert again.",
        )


def check_mask(node: str, mask: Tensor | None, inversion: Inversion) -> None:
    """Checks that a mask is one for all frames or one for each.

    Args:
        node: The node's name, for errors.
        mask: (H, W) or (M, H, W), or None.
        inversion: The source's inversion.

    Raises:
        NodeError: If it is neither.
    """
    if mask is None:
        return
    count = 1 if mask.ndim == 2 else len(mask)
    if count not in (1, inversion.frames):
        raise NodeError(
            node,
            "mask",
            f"{count} masks for {inversion.frames} inverted frames.",
            "Connect one mask for all frames, or one for each.",
        )


def check_frame_count(node: str, frames: Sized, inversion: Inversion) -> None:
    """Checks that the source's pictures are one for each inverted frame.

    Args:
        node: The node's name, for errors.
        frames: The pictures, N of them.
        inversion: The source's inversion.

    Raises:
        NodeError: If they are not.
    """
    if len(frames) != inversion.frames:
        raise NodeError(
            node,
            "frames",
            f"{len(frames)} images for {inversion.frames} inverted frames.",
            "Connect the frames that were encoded.",
        )


def check_frames(node: str, frames: Tensor | None, inversion: Inversion, mode: str) -> Tensor:
    """Checks the source's pictures, which a mode needs.

    Args:
        node: The node's name, for errors.
        frames: The pictures, (N, H, W, 3), or None.
        inversion: The source's inversion.
        mode: The mode's name.

    Returns:
        The pictures.

    Raises:
        NodeError: If they are missing or not one for each inverted frame.
    """
    if frames is None:
        raise no_frames(node, mode)
    check_frame_count(node, frames, inversion)
    return frames


def no_frames(node: str, mode: str) -> NodeError:
    """Makes the error of a mode that lacks the source's pictures.

    Args:
        node: The node's name.
        mode: The mode's name.

    Returns:
        The error.
    """
    found = f"nothing, and the mode {mode} follows the source's motion."
    return NodeError(node, "frames", found, "Connect the source frames.")


def check_guided(node: str, cfg: float, negative: bool) -> None:
    """Checks that guidance of the source has a negative prompt.

    Args:
        node: The node's name, for errors.
        cfg: The guidance; with 1 there is none.
        negative: Whether there is a negative prompt.

    Raises:
        NodeError: If it is missing.
    """
    if cfg > 1 and not negative:
        raise NodeError(
            node,
            "negative",
            f"nothing connected with cfg {cfg}.",
            "Set cfg to 1, or connect a negative prompt.",
        )


def check_same_clip(node: str, shape: tuple[int, ...], inversion: Inversion, socket: str) -> None:
    """Checks that latents have the shape of the inverted clip's.

    Args:
        node: The node's name, for errors.
        shape: The latents', (N, C, h, w).
        inversion: The source's inversion.
        socket: The input's name, for errors.

    Raises:
        NodeError: If they have another one.
    """
    inverted = tuple(inversion.latents.shape[1:])
    if shape == inverted:
        return
    if shape[0] != inverted[0]:
        found = f"{shape[0]} frames here, {inverted[0]} in the inversion."
        remedy = "Sample all frames of the inverted clip in one batch, without context windows."
    elif len(shape) != len(inverted) or shape[1] != inverted[1]:
        found = f"latents of shape {shape} here, {inverted} in the inversion."
        remedy = "Encode the frames with the VAE that belongs to the model."
    else:
        here, there = (f"{sizes[3]} x {sizes[2]}" for sizes in (shape, inverted))
        found = f"latents of {here} here, {there} in the inversion."
        remedy = "Use the same resolution for both."
    raise NodeError(node, socket, found, remedy)


def check_inverted_clip(
    node: str, latents: Tensor, inversion: Inversion, socket: str = "latents"
) -> None:
    """Checks that clean latents are what was inverted, but for rounding.

    Args:
        node: The node's name, for errors.
        latents: The clean latents, (N, C, h, w) in the model's space.
        inversion: The source's inversion.
        socket: The input's name, for errors.

    Raises:
        NodeError: If they are another clip's.
    """
    check_same_clip(node, tuple(latents.shape), inversion, socket)
    wanted = inversion.latents[-1].to(latents)
    error, size = (part.flatten(1).norm(dim=1) for part in (latents - wanted, wanted))
    others = (error > SAME_FRAME * size).nonzero().flatten().tolist()
    if others:
        raise NodeError(
            node,
            socket,
            f"frames {others[:8]} are not those that were inverted.",
            "Connect the same frames, or invert these.",
        )
