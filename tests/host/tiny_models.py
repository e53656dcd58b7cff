"""An SD 1.5 made narrow, with random weights, through the host's own classes: every node of the host and of the pack takes it.

Import after ComfyUI is importable (see conftest.py).
"""

from __future__ import annotations

import comfy.model_detection
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

CHANNELS = 4
CONTEXT = 32
# The UNet of SD 1.5 with 32 channels instead of 320 and at most twice as many: blocks, resolutions and layer names are the same.
LAYOUT = {
    "image_size": 32,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 2, 2),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT,
    "use_linear_in_transformer": False,
    "legacy": False,
}
# Branches small enough that the noise changes no faster than the latents do (a random network can be chaotic, and rounding errors would
# grow with every step), attention large enough that its output is a third of the noise.
GAINS = {
    "out_layers.3.weight": 0.3,
    "proj_out.weight": 0.3,
    "attn1.to_q.weight": 1.4,
    "attn1.to_k.weight": 1.4,
    "attn1.to_out.0.weight": 1.4,
}


def random_weights(seed: int) -> dict[str, Tensor]:
    """A state dict in which no layer is zero and attention is neither flat nor one-hot.

    Real checkpoints grow from zero-initialised output layers; left at zero they would hide every error behind them.
    """
    unet = UNetModel(**LAYOUT, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in ((name, tensor.shape) for name, tensor in unet.state_dict().items()):
        noise = torch.randn(shape, generator=generator)
        if noise.ndim > 1:
            gain = next((gain for ending, gain in GAINS.items() if name.endswith(ending)), 1.0)
            weights[name] = noise * gain / noise[0].numel() ** 0.5
        else:
            # Norms are the only one-dimensional weights.
            weights[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    return weights


def tiny_sd15(seed: int = 0) -> ModelPatcher:
    """The narrow SD 1.5: float32, on the CPU, 4 latent channels, eps prediction, noise of scale one."""
    weights = random_weights(seed)
    config = comfy.supported_models.SD15(comfy.model_detection.detect_unet_config(weights, ""))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights, "")
    model.load_model_weights(weights, "")
    cpu = torch.device("cpu")
    return ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def random_conditioning(seed: int, tokens: int = 7) -> list:
    """A CONDITIONING of random token embeddings, (1, tokens, CONTEXT).

    Any two have most in common, as prompts have for a trained model: guidance multiplies their difference, and rounding errors with it.
    """
    shared = torch.randn(1, tokens, CONTEXT, generator=torch.Generator().manual_seed(2**32))
    return [[shared + 0.3 * torch.randn(1, tokens, CONTEXT, generator=torch.Generator().manual_seed(seed)), {}]]


def moving_clip(frames: int, height: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """A LATENT of a textured plane that moves one latent pixel a frame, with a little noise: matches exist and are not exact.

    The samples are scaled so that the model sees latents of deviation one.
    """
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(CHANNELS, height, width + frames, generator=generator)
    clip = torch.stack([plane[:, :, i : i + width] for i in range(frames)])
    clip = clip + 0.1 * torch.randn(clip.shape, generator=generator)
    return {"samples": clip / comfy.supported_models.SD15.latent_format().scale_factor}
