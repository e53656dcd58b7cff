"""A node of the tests' server: what stands in a checkpoint loader's place where a workflow asks for
a model of another layout.

The UNet is the layout's made narrow with random weights (tests/host/tiny_models.py), text encoder
and autoencoder are the embedded model's cut to its widths.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

PATCH = 8


def _tiny_models() -> ModuleType:
    """tests/host/tiny_models.py, which is in no package here."""
    spec = importlib.util.spec_from_file_location(
        "tiny_models", Path(__file__).resolve().parent.parent / "host" / "tiny_models.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Text:
    """A CLIP whose embeddings are so narrow: the first numbers of another one's."""

    def __init__(self, clip: Any, width: int) -> None:
        self.clip, self.width = clip, width

    def tokenize(self, *args: Any, **kwargs: Any) -> Any:
        return self.clip.tokenize(*args, **kwargs)

    def encode_from_tokens_scheduled(self, *args: Any, **kwargs: Any) -> list[Any]:
        found = self.clip.encode_from_tokens_scheduled(*args, **kwargs)
        return [
            [
                words[..., : self.width],
                {**more, "pooled_output": more["pooled_output"][..., : self.width]},
            ]
            for words, more in found
        ]


class Patches(torch.nn.Module):
    """A linear autoencoder: 8 x 8 patches, (B, 3, H, W) in [-1, 1], on four random axes of them,
    (B, 4, H / 8, W / 8).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        noise = torch.randn(3 * PATCH**2, channels, generator=torch.Generator().manual_seed(0))
        self.register_buffer("axes", torch.linalg.qr(noise).Q)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return (
            (torch.nn.functional.pixel_unshuffle(pictures, PATCH).movedim(1, -1) @ self.axes)
            .movedim(-1, 1)
            .contiguous()
        )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(
            (latents.movedim(1, -1) @ self.axes.T).movedim(-1, 1), PATCH
        ).contiguous()


def _autoencoder(channels: int) -> comfy.sd.VAE:
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = Patches(channels)
    vae.downscale_ratio = vae.upscale_ratio = PATCH
    vae.latent_channels = channels
    vae.patcher = ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=vae.device
    )
    return vae


class TinyCheckpoint:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"layout": ("STRING", {}), "clip": ("CLIP",)}}

    def load(self, layout: str, clip: Any) -> tuple[Any, Text, comfy.sd.VAE]:
        tiny = _tiny_models()
        return (
            tiny.tiny_unet(tiny.LAYOUTS[layout]),
            Text(clip, tiny.CONTEXT),
            _autoencoder(tiny.CHANNELS),
        )


NODE_CLASS_MAPPINGS = {"TinyCheckpoint": TinyCheckpoint}
