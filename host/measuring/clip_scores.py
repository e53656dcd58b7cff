"""Embeddings in CLIP's common space of pictures and texts.

They come from the host's CLIP_VISION and CLIP objects. Both halves of a CLIP end in a
projection into that space. The host's vision models apply theirs. Of its text encoders, those
of ViT-H (SD 2.x) and ViT-bigG (SDXL) do; ViT-L's does not, as SD 1.x needs no projection and
its checkpoints hold none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..validation.errors import NodeError


def frame_embedding(node: str, socket: str, clip_vision: Any) -> Callable[[Tensor], Tensor]:
    """Makes a function that embeds frames.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        clip_vision: The host's CLIP_VISION.

    Returns:
        Embeds a picture (3, h, w) in [0, 1] as (1, C), float32 on the CPU, after CLIP's
        own preparation: the middle square, resized. It raises NodeError for files without
        the model's weights.

    Raises:
        NodeError: For vision models without CLIP's projection (DINOv2, SigLIP).
    """
    projection = getattr(clip_vision.model, "visual_projection", None)
    # The host puts a function or an Identity in its place.
    if not hasattr(projection, "out_features"):
        kind = type(clip_vision.model).__name__
        raise NodeError(
            node,
            socket,
            f"{kind} without CLIP's projection.",
            "Load CLIP ViT-L, ViT-H or ViT-bigG with Load CLIP Vision.",
        )

    def embed(image: Tensor) -> Tensor:
        embedding: Tensor = (
            clip_vision.encode_image(image.movedim(0, -1)[None]).image_embeds.float().cpu()
        )
        if not _usable(embedding):
            remedy = "Load a file with all weights, visual_projection among them."
            raise NodeError(node, socket, "it gives a frame no embedding.", remedy)
        return embedding

    return embed


def prompt_embedding(node: str, socket: str, clip: Any, prompt: str, clip_vision: Any) -> Tensor:
    """Embeds a prompt.

    Emphasis does not count, nor does what comes after 75 tokens.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        clip: The host's CLIP.
        prompt: The prompt.
        clip_vision: The host's CLIP_VISION, checked by `frame_embedding`.

    Returns:
        (1, C), float32 on the CPU.

    Raises:
        NodeError: If the text encoder does not project, or not into a space as wide as
            the vision model's.
    """
    tokens = clip.tokenize(prompt)
    projected, pooled = (
        clip.encode_from_tokens(tokens, return_pooled=kind)[1] for kind in (True, "unprojected")
    )
    if projected is None or torch.equal(projected, pooled) or not _usable(projected):
        raise NodeError(
            node,
            socket,
            "this text encoder does not project prompts into CLIP's space of pictures and texts.",
            "Load the text encoder of CLIP ViT-H (SD 2.x) or ViT-bigG (SDXL), "
            "and the same CLIP's vision model as clip_vision.",
        )
    width, wanted = projected.shape[-1], clip_vision.model.visual_projection.out_features
    if width != wanted:
        raise NodeError(
            node,
            socket,
            f"it embeds prompts in {width} numbers, clip_vision frames in {wanted}.",
            "Load both halves of the same CLIP: ViT-H (1024) or ViT-bigG (1280).",
        )
    return projected.float().cpu()


def _usable(embedding: Tensor) -> bool:
    return bool(torch.isfinite(embedding).all() and embedding.any())
