"""Finds the UNet's layers by structure: self-attention modules, and what Plug-and-Play injects into."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample


def self_attention_layers(diffusion_model: Any) -> tuple[str, ...]:
    """Module paths of every self-attention (`attn1`) in the order the UNet runs them.

    Blocks whose first attention is a cross-attention (`disable_self_attn`) are left out.
    Returns: e.g. "output_blocks.4.1.transformer_blocks.0.attn1"; empty for models without such blocks.
    """
    return tuple(
        f"{path}.attn1"
        for path, module in diffusion_model.named_modules()
        if isinstance(module, BasicTransformerBlock) and not module.disable_self_attn and path.startswith(("input_", "middle_", "output_"))
    )


def cross_attention_layers(diffusion_model: Any) -> tuple[str, ...]:
    """Module paths of the cross-attention (`attn2`) in the blocks of `self_attention_layers`, in the same order."""
    known = {path for path, _ in diffusion_model.named_modules()}
    return tuple(path for layer in self_attention_layers(diffusion_model) if (path := cross_attention(layer)) in known)


def cross_attention(layer: str) -> str:
    """The cross-attention in the block of a self-attention layer."""
    return layer.removesuffix("attn1") + "attn2"


def blocks(layers: tuple[str, ...]) -> tuple[str, ...]:
    """The UNet's blocks that layers belong to, in their order, e.g. "input_blocks.1", "middle_block", "output_blocks.3"."""
    parts = (layer.split(".") for layer in layers)
    return tuple(dict.fromkeys(part[0] if part[0] == "middle_block" else ".".join(part[:2]) for part in parts))


def decoder_block(layer: str) -> int | None:
    """The number of the output block a layer belongs to, None outside of the decoder."""
    parts = layer.split(".")
    return int(parts[1]) if parts[0] == "output_blocks" else None


def deep_layers(diffusion_model: Any) -> tuple[str, ...]:
    """Module paths of all that runs below the UNet's full resolution, in order: from the first Downsample to the last Upsample.

    Returns: e.g. "input_blocks.3.0" ... "middle_block.2" ... "output_blocks.8.2"; empty for models without such a part.
    """
    known = [
        (f"{part}.{i}.{j}", layer)
        for part in ("input_blocks", "output_blocks")
        for i, block in enumerate(getattr(diffusion_model, part, ()))
        for j, layer in enumerate(block)
    ]
    middle = [(f"middle_block.{j}", layer) for j, layer in enumerate(getattr(diffusion_model, "middle_block", None) or ())]
    split = sum(path.startswith("input_") for path, _ in known)
    known[split:split] = middle
    down = [position for position, (_, layer) in enumerate(known) if isinstance(layer, Downsample)]
    up = [position for position, (_, layer) in enumerate(known) if isinstance(layer, Upsample)]
    return tuple(path for path, _ in known[down[0] : up[-1] + 1]) if down and up else ()


def injected_attention(layers: tuple[str, ...], choice: str = "decoder") -> tuple[str, ...]:
    """The self-attention layers whose queries and keys Plug-and-Play takes from the source.

    All decoder blocks with self-attention but the first: SD 1.5's and 2.x's output blocks 4 to 11, SDXL's 1 to 5.
    "late decoder" keeps the second half of those.
    """
    blocks = sorted({block for layer in layers if (block := decoder_block(layer)) is not None})[1:]
    if choice == "late decoder":
        blocks = blocks[len(blocks) // 2 :]
    return tuple(layer for layer in layers if decoder_block(layer) in blocks)


def injected_features(layers: tuple[str, ...]) -> str | None:
    """The ResBlock part whose hidden features Plug-and-Play takes from the source: the residual branch, before the skip is added.

    The first block of `injected_attention`: SD 1.5's "output_blocks.4.0.out_layers". None if the decoder has no such block.
    """
    injected = injected_attention(layers)
    return f"output_blocks.{decoder_block(injected[0])}.0.out_layers" if injected else None
