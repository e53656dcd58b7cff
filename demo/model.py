"""The demo model's parts as plain trainable modules, and its weights file.

UNet and text encoder are ComfyUI's own classes: COMFYUI_PATH says where it is.

Latents are (B, 16, H / 4, W / 4), pictures (B, 3, H, W) in [0, 1], prompts lists of B strings.
"""

# ruff: noqa: E402 (ComfyUI is importable only once its folder is known)

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [os.environ.get("COMFYUI_PATH", str(ROOT / ".host" / "ComfyUI")), str(ROOT)]
_arguments, sys.argv = sys.argv, sys.argv[:1]  # ComfyUI parses the command line when it is imported

import torch
from comfy.cli_args import args

args.cpu = not torch.cuda.is_available()

import comfy.clip_model
import comfy.ops
from comfy.ldm.modules import attention as host_attention  # noqa: F401
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.modules.diffusionmodules.util import make_beta_schedule
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from host.files.demo_model import (
    CHANNELS,
    FEW_STEPS_WEIGHTS,
    HEAD_WIDTH,
    PATCH,  # noqa: F401 (for train.py)
    SCHEDULE,
    TEXT_ENCODER,
    WEIGHTS,
    PatchAutoencoder,
)

sys.argv = _arguments

# SD 1.5's layout made narrow: 64 channels instead of 320, and at most twice as many further down.
UNET = {
    "image_size": 32,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "model_channels": 64,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 2, 2),
    "num_head_channels": HEAD_WIDTH,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "context_dim": TEXT_ENCODER["hidden_size"],
    "use_linear_in_transformer": False,
    "legacy": False,
    "dtype": torch.float32,
}
UP, DOWN = ".lora_up.weight", ".lora_down.weight"  # of a LoRA's names
_betas = make_beta_schedule(
    SCHEDULE["beta_schedule"], 1000, SCHEDULE["linear_start"], SCHEDULE["linear_end"]
)
ALPHA_BAR = torch.cumprod(1 - _betas, 0).float()


class DemoModel(nn.Module):
    """UNet, text encoder and autoencoder; freshly initialised unless weights are loaded."""

    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        operations = comfy.ops.disable_weight_init
        self.unet = UNetModel(**UNET, operations=operations)
        self.text = comfy.clip_model.CLIPTextModel(TEXT_ENCODER, torch.float32, "cpu", operations)
        self.codec = autoencoder
        for module in self.modules():
            for layer in (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm):
                if isinstance(module, layer):
                    layer.reset_parameters(module)
        nn.init.normal_(self.text.text_model.embeddings.token_embedding.weight, std=0.5)
        for name, weight in self.unet.named_parameters():
            if name.startswith("out.2") or name.endswith(
                ("out_layers.3.weight", "proj_out.weight")
            ):
                nn.init.zeros_(weight)

    def predict(self, noised: Tensor, step: Tensor, context: Tensor) -> Tensor:
        """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) latent, for latents noised to the
        schedule's `step`, (B,) of 0 to 999.
        """
        return self.unet._forward(noised, step, context, transformer_options={})

    def groups(self) -> list[dict]:
        """What is trained, and how fast against the rate asked for."""
        return [
            {"params": list(self.unet.parameters()), "pace": 1.0},
            {"params": list(self.text.parameters()), "pace": 3.0},
        ]

    def core(self, noised: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """As `predict`: what the compiler is to see, the UNet alone."""
        return self.predict(noised, times, context)

    def levels(self, parts: Tensor) -> Tensor:
        """The schedule's steps for `parts`, evenly spread over [0, 1): more of them noisy, where
        prompts and layouts are learnt.
        """
        return (parts.sqrt() * 1000).long().clamp(max=999)

    def pair(self, latents: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents and what is to be predicted of them, v."""
        alpha_bar = ALPHA_BAR.to(latents.device)[times].view(-1, 1, 1, 1)
        signal, share = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        return signal * latents + share * noise, signal * noise - share * latents

    def read(self, prompts: list[str]) -> Tensor:
        """Token embeddings of prompts, (B, 77, 64)."""
        return self.text(tokenize(prompts).to(self.codec.mean.device))[0]

    def encode(self, pictures: Tensor) -> Tensor:
        return self.codec.encode(pictures * 2 - 1)

    def decode(self, latents: Tensor) -> Tensor:
        return (self.codec.decode(latents) / 2 + 0.5).clamp(0, 1)


def _text_layer(self, x: Tensor, mask: Tensor | None = None, optimized_attention=None) -> Tensor:
    x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
    return x + self.mlp(self.layer_norm2(x))


# The host's adds in place, which autograd cannot follow.
comfy.clip_model.CLIPLayer.forward = _text_layer

_tokenizer = CLIPTokenizer.from_pretrained(Path(comfy.__path__[0]) / "sd1_tokenizer")


def tokenize(prompts: list[str]) -> Tensor:
    """SD 1's token ids, (B, 77)."""
    return torch.tensor(
        _tokenizer(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    )


def assemble(weights: dict[str, Tensor]) -> DemoModel:
    """The model with the given weights, in float32."""
    codec = {
        name.removeprefix("codec."): value
        for name, value in weights.items()
        if name.startswith("codec.")
    }
    model = DemoModel(PatchAutoencoder(**codec))
    model.load_state_dict(weights)
    return model.float()


def load(path: Path = WEIGHTS) -> DemoModel:
    """The model of a weights file."""
    return assemble(load_file(path))


def load_few() -> DemoModel:
    """The shipped model with what `distill.py` left in its UNet's weights."""
    model, lora = load(), load_file(FEW_STEPS_WEIGHTS)
    with torch.no_grad():
        for name in lora:
            if name.endswith(DOWN):
                part = name.removesuffix(DOWN)
                weight = model.unet.get_submodule(part.removeprefix("diffusion_model.")).weight
                change = lora[part + UP].float().flatten(1) @ lora[name].float().flatten(1)
                weight += change.view_as(weight)
    return model


def save(model: DemoModel, path: Path) -> None:
    """Half precision, but for the autoencoder's few numbers."""
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    halves = {
        name: value if name.startswith("codec.") else value.half()
        for name, value in weights.items()
    }
    unfinished = path.with_suffix(".part")
    save_file(halves, unfinished)
    unfinished.replace(path)


@torch.no_grad()
def sample(
    model: DemoModel,
    prompts: list[str],
    steps: int = 25,
    cfg: float = 4.0,
    seed: int = 0,
    latents: Tensor | None = None,
) -> Tensor:
    """128 x 128 pictures of prompts by deterministic DDIM: Euler steps of dx/dsigma = eps in x =
    latent + sigma * noise.

    `latents` are inverted ones to start from.
    """
    x, (times, sigmas) = latents, ladder(steps)
    if x is None:
        noise = torch.randn(
            len(prompts), CHANNELS, 32, 32, generator=torch.Generator().manual_seed(seed)
        )
        x = noise * (1 + sigmas[0] ** 2).sqrt()
    prompted, empty = model.read(prompts), model.read([""] * len(prompts))
    for time, sigma, following in zip(times, sigmas[:-1], sigmas[1:], strict=True):
        eps = epsilon(model, x, time, sigma, prompted)
        if cfg != 1:
            base = epsilon(model, x, time, sigma, empty)
            eps = base + cfg * (eps - base)
        x = x + (following - sigma) * eps
    return model.decode(x)


@torch.no_grad()
def invert(model: DemoModel, pictures: Tensor, prompts: list[str], steps: int = 50) -> Tensor:
    """The latents that `sample` at cfg 1 leads back to pictures.

    The same steps in reverse, with eps at the step's noisier end,
    found by three fixed-point iterations.
    """
    times, sigmas = ladder(steps)
    x, context = model.encode(pictures), model.read(prompts)
    for time, sigma, before in zip(
        reversed(times), sigmas[:-1].flip(0), sigmas[1:].flip(0), strict=True
    ):
        target = x
        for _ in range(3):
            target = x + (sigma - before) * epsilon(model, target, time, sigma, context)
        x = target
    return x


def ladder(steps: int) -> tuple[list[int], Tensor]:
    """The schedule's steps from the noisiest down,
    and their noise over signal with a zero at the end.
    """
    times = torch.linspace(999, 999 / steps, steps).round().long()
    return times.tolist(), torch.cat([((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()[times], torch.zeros(1)])


def epsilon(model: DemoModel, x: Tensor, time: int, sigma: Tensor, context: Tensor) -> Tensor:
    """The noise in x = latent + sigma * noise."""
    scaled = x / (1 + sigma**2).sqrt()
    v = model.predict(scaled, torch.full((len(x),), time), context)
    return (v + sigma * scaled) / (1 + sigma**2).sqrt()
