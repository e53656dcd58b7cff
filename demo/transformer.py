"""The demo model's second diffusion model: a small SD 3 of the same world.

Text encoder and autoencoder are the shipped ones, frozen. Latents are (B, 16, H, W), prompts lists
of B strings. A flow model: x = (1 - sigma) latent + sigma noise, and it predicts noise - latent.
"""

from __future__ import annotations

from pathlib import Path

import model as unet_model
import torch
from comfy import ops
from comfy.ldm.modules.diffusionmodules import mmdit
from model import Tensor, nn
from safetensors.torch import load_file, save_file

from host.files.demo_model import (
    CHANNELS,
    TEXT_ENCODER,
    TRANSFORMER_SHIFT,
    TRANSFORMER_WEIGHTS,
    TRANSFORMER_WORDS,
)

GRID = 32  # tokens of a side that have a position: pictures of up to 256 pixels
WIDTH = 256  # SD 3's heads are 64 wide
LAYOUT = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": CHANNELS,
    "depth": WIDTH // 64,
    "num_blocks": 8,
    "qk_norm": "rms",
    "num_patches": GRID * GRID,
    "pos_embed_max_size": GRID,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": TEXT_ENCODER["hidden_size"], "out_features": WIDTH},
    },
    "dtype": torch.float32,
}


class DemoTransformer(nn.Module):
    """Transformer, text encoder and autoencoder; the first freshly initialised."""

    def __init__(self, frozen: unet_model.DemoModel | None = None) -> None:
        super().__init__()
        frozen = frozen or unet_model.load()
        self.text = frozen.text.requires_grad_(False)
        self.codec = frozen.codec
        self.transformer = mmdit.OpenAISignatureMMDITWrapper(
            **LAYOUT, operations=ops.disable_weight_init
        )
        for name, part in self.transformer.named_modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Conv2d):
                nn.Conv2d.reset_parameters(part)
            elif hasattr(part, "weight") and name.endswith(("ln_q", "ln_k")):
                nn.init.ones_(part.weight)
        for name, weight in self.transformer.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(weight)
        self.transformer.pos_embed.copy_(positions(GRID, WIDTH))

    def groups(self) -> list[dict]:
        """What is trained, and how fast against the rate asked for."""
        return [{"params": list(self.transformer.parameters()), "pace": 1.0}]

    def core(self, noised: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """The velocity noise - latent, for times of 0 to 1000."""
        return self.transformer(noised, times, context)

    def levels(self, parts: Tensor) -> Tensor:
        """Noise levels of `parts`, evenly spread over [0, 1): 0 to 1000, more of them high."""
        return 1000 * TRANSFORMER_SHIFT * parts / (1 + (TRANSFORMER_SHIFT - 1) * parts)

    def pair(self, latents: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents and what is to be predicted of them."""
        sigma = (times / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise, noise - latents

    def read(self, prompts: list[str]) -> Tensor:
        """Token embeddings of prompts, (B, 16, 64)."""
        tokens = unet_model.tokenize(prompts).to(self.codec.mean.device)
        return self.text(tokens)[0][:, :TRANSFORMER_WORDS]

    def encode(self, pictures: Tensor) -> Tensor:
        return self.codec.encode(pictures * 2 - 1)

    def decode(self, latents: Tensor) -> Tensor:
        return (self.codec.decode(latents) / 2 + 0.5).clamp(0, 1)


def positions(side: int, width: int) -> Tensor:
    """Sines and cosines of rows and columns, (1, side * side, width), as SD 3 has them."""
    rates = 10000 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    across = line.expand(side, side, -1)
    return torch.cat([across, across.transpose(0, 1)], -1).flatten(0, 1)[None]


def load(path: Path = TRANSFORMER_WEIGHTS) -> DemoTransformer:
    """The model of a weights file, in float32."""
    model = DemoTransformer()
    model.transformer.load_state_dict(load_file(path))
    return model.float()


def save(model: DemoTransformer, path: Path) -> None:
    """The transformer alone, in half precision."""
    unfinished = path.with_suffix(".part")
    save_file(
        {
            name: value.detach().cpu().half().contiguous()
            for name, value in model.transformer.state_dict().items()
        },
        unfinished,
    )
    unfinished.replace(path)


@torch.no_grad()
def sample(
    model: DemoTransformer,
    prompts: list[str],
    steps: int = 28,
    cfg: float = 4.0,
    seed: int = 0,
    side: int = 32,
) -> Tensor:
    """Pictures of prompts, (B, 3, 4 * side, 4 * side), by Euler steps."""
    x = torch.randn(
        len(prompts), CHANNELS, side, side, generator=torch.Generator().manual_seed(seed)
    )
    times = model.levels(torch.linspace(1, 0, steps + 1))
    prompted, empty = model.read(prompts), model.read([""] * len(prompts))
    for time, following in zip(times, times[1:], strict=False):
        at = time.expand(len(x))
        base, v = model.core(x, at, empty), model.core(x, at, prompted)
        x = x + (following - time) / 1000 * (base + cfg * (v - base))
    return model.decode(x)
