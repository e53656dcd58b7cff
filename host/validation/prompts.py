"""Checks of CONDITIONINGs that users connect."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import torch

from .errors import NodeError

# Numbers beside the pooled prompt in the vector that SDXL and its refiner take: the picture's size
# and crop, each 256 wide.
BESIDE = {comfy.model_base.SDXL: 6 * 256, comfy.model_base.SDXLRefiner: 5 * 256}


def check_prompts(node: str, model: Any, prompts: Any, socket: str = "positive") -> None:
    """Checks that a CONDITIONING holds prompts that the model takes.

    Args:
        node: The node's name, for errors.
        model: The ModelPatcher.
        prompts: The CONDITIONING.
        socket: The input's name, for errors.

    Raises:
        NodeError: If it holds no prompt, or one that the model does not take.
    """
    if not prompts:
        raise NodeError(node, socket, "no prompt in it.", "Connect CLIP Text Encode.")
    width = model.model.model_config.unet_config.get("context_dim")
    beside = next(
        (numbers for kind, numbers in BESIDE.items() if isinstance(model.model, kind)), None
    )
    for embedding, options in prompts:
        _check_embedding(node, socket, "prompt", embedding, 3, width)
        if beside is not None and "unclip_conditioning" not in options:
            _check_embedding(
                node,
                socket,
                "pooled prompt",
                options.get("pooled_output"),
                2,
                model.model.adm_channels - beside,
            )


def _check_embedding(
    node: str, socket: str, name: str, embedding: Any, dimensions: int, width: int | None
) -> None:
    """Raises: NodeError unless it is finite, of so many dimensions and as wide as the model."""
    if (
        not isinstance(embedding, torch.Tensor)
        or embedding.ndim != dimensions
        or not embedding.numel()
    ):
        found = (
            f"shape {tuple(embedding.shape)}" if isinstance(embedding, torch.Tensor) else "nothing"
        )
        raise NodeError(
            node,
            socket,
            f"{found} as the {name}.",
            "Connect CLIP Text Encode, with the text encoder that belongs to the model.",
        )
    if not embedding.is_floating_point():
        raise NodeError(
            node, socket, f"a {name} of type {embedding.dtype}.", "Connect CLIP Text Encode."
        )
    if width is not None and embedding.shape[-1] != width:
        raise NodeError(
            node,
            socket,
            f"a {name} {embedding.shape[-1]} wide, the model takes {width}.",
            "Encode it with the text encoder that belongs to the model.",
        )
    if not torch.isfinite(embedding).all():
        raise NodeError(
            node,
            socket,
            f"NaN or infinite values in the {name}.",
            "Run the text encoder in a higher precision (--fp32-text-enc).",
        )


def check_plain_prompt(node: str, positive: Any, socket: str = "positive") -> None:
    """Checks that a CONDITIONING is one prompt for all of the frame and all noise levels.

    Args:
        node: The node's name, for errors.
        positive: The CONDITIONING.
        socket: The input's name, for errors.

    Raises:
        NodeError: If it is not.
    """
    if len(positive) != 1:
        raise NodeError(
            node,
            socket,
            f"{len(positive)} prompts combined.",
            "Connect one prompt that describes the clip.",
        )
    limits = {
        "area",
        "mask",
        "control",
        "hooks",
        "start_percent",
        "end_percent",
        "gligen",
    } & positive[0][1].keys()
    if limits:
        raise NodeError(
            node,
            socket,
            f"a prompt with {', '.join(sorted(limits))}.",
            "Connect a plain prompt that describes the clip.",
        )
