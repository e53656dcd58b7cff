"""Checkpoint files that the host's own loader takes, with random weights and few layers.

The loader knows a family by its widths: they are the true ones. All else is as small as it may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

BLOCKS = {"num_res_blocks": [1, 1], "channel_mult": (1, 1)}
POOL = 1_048_573  # prime: no row of weights is like another
LAYERS = 12  # of SD 1's text encoder: the host fills those that a file lacks with anything


def write_sd1(path: Path) -> Path:
    """An SD 1.x of two resolutions: UNet, text encoder and a small autoencoder."""
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        use_spatial_transformer=True,
        legacy=False,
        num_heads=8,
        **comfy.supported_models.SD15.unet_config,
        **BLOCKS,
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        transformer_depth_output=[1] * 4,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    parts = {
        "model.diffusion_model.": unet,
        "cond_stage_model.transformer.": _text(),
        "first_stage_model.": TAESD(),
    }
    return _write(path, parts)


def write_sd3(path: Path) -> Path:
    """An SD 3 of two blocks, with one of its text encoders."""
    network = OpenAISignatureMMDITWrapper(
        input_size=None,
        patch_size=2,
        in_channels=16,
        depth=2,
        adm_in_channels=2048,
        num_patches=64 * 64,
        pos_embed_max_size=64,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 2 * 64},
        },
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    parts = {
        "model.diffusion_model.": network,
        "text_encoders.clip_l.transformer.": _text(),
        "first_stage_model.": TAESD(latent_channels=16),
    }
    return _write(path, parts)


def _text() -> CLIPTextModel:
    """CLIP ViT-L's text encoder, without memory."""
    widths = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(num_hidden_layers=LAYERS, **widths))


def _write(path: Path, parts: Mapping[str, torch.nn.Module]) -> Path:
    """parts: by what the names of their weights begin with."""
    draw = torch.Generator().manual_seed(0)
    pool = torch.empty(POOL).uniform_(-1, 1, generator=draw).half()
    weights = {
        start + name: _drawn(name, tensor, pool)
        for start, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    save_file(weights, path)
    return path


def _drawn(name: str, like: Tensor, pool: Tensor) -> Tensor:
    """Half precision, of a size that keeps what goes through it as large as it is."""
    if not like.is_floating_point():
        return torch.arange(like.numel()).view(like.shape)
    if like.ndim < 2:
        return torch.full(like.shape, float(name.endswith("weight") or "scale" in name)).half()
    numbers = pool.repeat(-(-like.numel() // len(pool)))[: like.numel()].view(like.shape)
    return numbers * (3 / like[0].numel()) ** 0.5
