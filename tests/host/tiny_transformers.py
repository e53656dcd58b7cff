"""The host's image transformers made narrow, with random weights, in their published layouts.

Import after ComfyUI is importable (see conftest.py).
"""

from __future__ import annotations

import dataclasses
import importlib
import zlib
from dataclasses import dataclass, field
from typing import Any

import comfy.model_detection
import comfy.ops
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .once import once_a_session

CONTEXT, POOLED, WORDS = 32, 48, 7
# Branches small enough that rounding errors do not grow with every step.
GAINS = {
    "adaLN_modulation": 0.5,
    "_mod.": 0.5,
    "modulation.lin": 0.5,
    "modC": 0.5,
    "modX": 0.5,
    "mlp.fc2": 0.5,
    "feed_forward.w2": 0.5,
    "final_layer.linear": 0.15,
    "final_linear": 0.3,
    "proj_out": 0.15,
}


@dataclass(frozen=True)
class Network:
    """The host's class of a network, by its module and name."""

    path: str
    name: str

    def __call__(self, **settings: Any) -> Any:
        """Makes one."""
        return getattr(importlib.import_module(self.path), self.name)(**settings)

    def knows(self, setting: str) -> bool:
        """Whether this version of the host tells the class of it; where it lists what it tells."""
        listed = getattr(importlib.import_module(self.path), f"{self.name}Params", None)
        return listed is not None and setting in {
            entry.name for entry in dataclasses.fields(listed)
        }


@dataclass(frozen=True)
class Layout:
    """A transformer as published, made narrow.

    family: the host's class. build: makes the network. config: what the host's class is told of it.
    extras: what a prompt holds beside its tokens. channels: of its latents. newer: what newer hosts
    tell the class as well.
    """

    family: str
    build: Network
    config: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    channels: int = 16
    context: int = CONTEXT
    newer: dict[str, Any] = field(default_factory=lambda: {"txt_ids_dims": [], "vec_in_dim": None})

    @property
    def settings(self) -> dict[str, Any]:
        """What this version of the host tells the class."""
        return {key: value for key, value in self.newer.items() if self.build.knows(key)} | (
            self.config
        )


MMDIT = Network("comfy.ldm.modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper")
FLUX = Network("comfy.ldm.flux.model", "Flux")
CHROMA = Network("comfy.ldm.chroma.model", "Chroma")
QWEN = Network("comfy.ldm.qwen_image.model", "QwenImageTransformer2DModel")
LUMINA = Network("comfy.ldm.lumina.model", "NextDiT")
AURA = Network("comfy.ldm.aura.mmdit", "MMDiT")


def _sd3(**more: Any) -> dict[str, Any]:
    return {
        "input_size": None,
        "patch_size": 2,
        "in_channels": 16,
        "depth": 3,
        "num_blocks": 5,
        "adm_in_channels": POOLED,
        "qk_norm": "rms",
        "num_patches": 576,
        "pos_embed_max_size": 24,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": CONTEXT, "out_features": 192},
        },
        **more,
    }


def _flux(**more: Any) -> dict[str, Any]:
    return {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": POOLED,
        "context_in_dim": CONTEXT,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 3,
        "depth_single_blocks": 3,
        "axes_dim": [16, 24, 24],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
        **more,
    }


def _lumina(**more: Any) -> dict[str, Any]:
    return {
        "patch_size": 2,
        "in_channels": 16,
        "dim": 64,
        "n_layers": 5,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 1,
        "multiple_of": 32,
        "cap_feat_dim": CONTEXT,
        "axes_dims": [8, 12, 12],
        "axes_lens": [300, 64, 64],
        "qk_norm": True,
        "rope_theta": 256.0,
        **more,
    }


POOLED_OUTPUT = {"pooled_output": (1, POOLED)}
LAYOUTS = {
    "SD 3": Layout("SD3", MMDIT, _sd3(), POOLED_OUTPUT),
    "SD 3.5 medium": Layout("SD3", MMDIT, _sd3(x_block_self_attn_layers=[0, 1, 2]), POOLED_OUTPUT),
    "Flux": Layout("Flux", FLUX, _flux(), POOLED_OUTPUT),
    "Flux schnell": Layout("FluxSchnell", FLUX, _flux(guidance_embed=False), POOLED_OUTPUT),
    "Chroma": Layout(
        "Chroma",
        CHROMA,
        {
            **{
                key: value
                for key, value in _flux().items()
                if key not in ("guidance_embed", "vec_in_dim")
            },
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 128,
            "hidden_dim": 64,
            "n_layers": 2,
        },
        POOLED_OUTPUT,
    ),
    "Lumina 2": Layout("Lumina2", LUMINA, _lumina()),
    "Z-Image": Layout(
        "ZImage",
        LUMINA,
        _lumina(
            dim=256,
            n_heads=8,
            n_kv_heads=8,
            z_image_modulation=True,
            time_scale=1000.0,
            pad_tokens_multiple=32,
        ),
    ),
    "AuraFlow": Layout(
        "AuraFlow",
        AURA,
        {
            "dim": 64,
            "n_layers": 5,
            "n_double_layers": 2,
            "n_heads": 2,
            "global_conddim": 64,
            "cond_seq_dim": CONTEXT,
            "max_seq": 24 * 24,
        },
        channels=4,
    ),
    "Qwen-Image": Layout(
        "QwenImage",
        QWEN,
        {
            "num_layers": 5,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": CONTEXT,
            "axes_dims_rope": (8, 12, 12),
        },
    ),
    "Flux.2": Layout(
        "Flux2",
        FLUX,
        _flux(
            in_channels=128,
            out_channels=128,
            vec_in_dim=None,
            mlp_ratio=3.0,
            axes_dim=[16, 16, 16, 16],
            theta=2000,
            patch_size=1,
            qkv_bias=False,
            guidance_embed=False,
            global_modulation=True,
            mlp_silu_act=True,
            ops_bias=False,
        ),
        POOLED_OUTPUT,
        channels=128,
        newer={"txt_ids_dims": [3]},
    ),
}


def weights(layout: Layout, seed: int = 0) -> tuple[Any, dict[str, Tensor]]:
    """The network on the meta device, and random weights for it: of each name its own, so that
    hosts that know other unused ones have the same network.
    """
    network = layout.build(
        **layout.settings,
        device="meta",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    filled = {}
    for name, empty in network.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        values = torch.randn(empty.shape, generator=generator)
        if "pos_embed" in name or "positional" in name:
            values = 0.5 * values
        elif values.ndim > 1:
            gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
            values = gain * values / values[0].numel() ** 0.5
        else:
            scale = name.endswith(("scale", "ln_q.weight", "ln_k.weight", "norm.weight"))
            scale = scale or ("norm" in name and name.endswith("weight"))
            values = 0.1 * values + float(scale)
        filled[name] = values
    return network, filled


@once_a_session
def tiny_transformer(name: str, seed: int = 0) -> ModelPatcher:
    """A MODEL of one of LAYOUTS in float32, through the host's own class of its family."""
    layout = LAYOUTS[name]
    _, filled = weights(layout, seed)
    family = getattr(comfy.supported_models, layout.family)
    config = family({**family.unet_config, **layout.settings})
    config.unet_config.pop("image_model", None)
    if layout.build is MMDIT:
        config.unet_config = dict(layout.config)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(filled, "")
    model.load_model_weights(dict(filled), "")
    cpu = torch.device("cpu")
    return ModelPatcher(model.eval(), cpu, cpu)


def prompt(name: str, seed: int, words: int = WORDS) -> list:
    """A CONDITIONING of random tokens that the model takes."""
    layout, generator = LAYOUTS[name], torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, words, layout.context, generator=generator)
    extras = {key: torch.randn(shape, generator=generator) for key, shape in layout.extras.items()}
    return [[tokens, extras]]


def clip(name: str, frames: int = 5, height: int = 12, width: int = 16) -> dict[str, Tensor]:
    """A LATENT of a random plane that moves by a latent pixel a frame; Qwen-Image's frames are
    videos of one picture.
    """
    channels = LAYOUTS[name].channels
    generator = torch.Generator().manual_seed(channels)
    plane = torch.randn(1, channels, height, width + frames, generator=generator)
    latents = torch.cat([plane[..., i : i + width] for i in range(frames)])
    return {"samples": latents.unsqueeze(2) if name == "Qwen-Image" else latents}
