"""The host's UNets made narrow, with random weights, through the host's own classes: every node of
the host and of the pack takes them.

Import after ComfyUI is importable (see conftest.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.latent_formats
import comfy.model_detection
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

CHANNELS = 4
CONTEXT = 32
POOLED = 32
# SDXL's vector `y` also holds six numbers (the picture's height and width, its crop, its target),
# 256 wide each; its refiner's holds five.
SIZES, REFINERS_SIZES = 6 * 256, 5 * 256
HEAD_CHANNELS = 16
# Branches small enough that the noise changes no faster than the latents do (a random network can
# be chaotic, and rounding errors would grow with every step), attention large enough that its
# output is a third of the noise.
GAINS = {
    "out_layers.3.weight": 0.3,
    "proj_out.weight": 0.3,
    "attn1.to_q.weight": 1.4,
    "attn1.to_k.weight": 1.4,
    "attn1.to_out.0.weight": 1.4,
}
# Rounding errors would grow fivefold in ten transformer blocks one after another.
DEEP_GAINS = {"ff.net.2.weight": 0.5}
# The host takes an SD 2.x for v-prediction by the deviation of this bias: above 0.09.
SD2_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


@dataclass(frozen=True)
class Layout:
    """A UNet as published.

    family: the host's class, which knows the widths. levels: channels per resolution, as multiples
    of the first's. encoder, decoder: transformer blocks behind every ResBlock, in the order the
    UNet runs them. middle: transformer blocks there, -1 for a ResBlock alone, -2 for nothing.
    in_channels: more than 4 of models that see pictures. v_prediction: what it predicts, noise if
    not. marks: numbers in its files beside the weights, by which the host knows EDM models.
    """

    family: type
    levels: tuple[int, ...]
    encoder: tuple[int, ...]
    middle: int
    decoder: tuple[int, ...]
    in_channels: int = CHANNELS
    v_prediction: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)

    @property
    def prediction(self) -> str:
        """The host's name of what it predicts."""
        if self.marks:
            return "EDM" if "edm_mean" in self.marks else "V_PREDICTION_EDM"
        return "V_PREDICTION" if self.v_prediction else "EPS"

    @property
    def latent_format(self) -> Any:
        """The host's, which the marks may change."""
        if "edm_mean" in self.marks:
            return comfy.latent_formats.SDXL_Playground_2_5()
        return self.family.latent_format()

    @property
    def takes_vector(self) -> bool:
        """Whether the model takes a pooled `y`."""
        return self.family.unet_config["adm_in_channels"] is not None

    def unet(self, narrow: bool = True) -> dict[str, Any]:
        """What the host's UNet is built from: 32 channels and at most twice as many, or the true
        widths. Blocks and names are the same.
        """
        true = self.family.unet_config
        widths = {
            "model_channels": 32 if narrow else true["model_channels"],
            "channel_mult": tuple(min(level, 2) for level in self.levels)
            if narrow
            else self.levels,
            "context_dim": CONTEXT if narrow else true["context_dim"],
        }
        sizes = REFINERS_SIZES if self.family is comfy.supported_models.SDXLRefiner else SIZES
        vector = {
            "num_classes": "sequential",
            "adm_in_channels": POOLED + sizes if narrow else true["adm_in_channels"],
        }
        return {
            "image_size": 32,
            "in_channels": self.in_channels,
            "out_channels": CHANNELS,
            "num_res_blocks": [len(self.encoder) // len(self.levels)] * len(self.levels),
            "use_spatial_transformer": True,
            "transformer_depth": list(self.encoder),
            "transformer_depth_output": list(reversed(self.decoder)),
            "transformer_depth_middle": self.middle,
            "use_linear_in_transformer": true["use_linear_in_transformer"],
            "legacy": False,
            **widths,
            **self.heads(narrow),
            **(vector if self.takes_vector else {}),
        }

    def heads(self, narrow: bool = True) -> dict[str, Any]:
        """8 heads in every layer, or as many as 64 channels each make (16 if narrow)."""
        heads = dict(self.family.unet_extra_config)
        if narrow and heads["num_head_channels"] > 0:
            heads["num_head_channels"] = HEAD_CHANNELS
        return heads


SD15 = Layout(
    comfy.supported_models.SD15, (1, 2, 4, 4), (1,) * 6 + (0,) * 2, 1, (0,) * 3 + (1,) * 9
)
# In two resolutions, with five attention blocks: it runs in a quarter of the time.
SMALL_SD15 = replace(SD15, levels=(1, 2), encoder=(1, 0), decoder=(1, 1, 1, 0))
SD2 = replace(SD15, family=comfy.supported_models.SD20)
SDXL = Layout(
    comfy.supported_models.SDXL,
    (1, 2, 4),
    (0, 0, 2, 2, 10, 10),
    10,
    (10,) * 3 + (2,) * 3 + (0,) * 3,
)
VEGA = Layout(
    comfy.supported_models.Segmind_Vega,
    (1, 2, 4),
    (0, 0, 1, 1, 2, 2),
    -1,
    (2,) * 3 + (1,) * 3 + (0,) * 3,
)
KOALA = Layout(comfy.supported_models.KOALA_700M, (1, 2, 4), (0, 2, 5), -2, (5, 5, 2, 2, 0, 0))
REFINER = Layout(
    comfy.supported_models.SDXLRefiner,
    (1, 2, 4, 4),
    (0, 0, 4, 4, 4, 4, 0, 0),
    4,
    (0,) * 3 + (4,) * 6 + (0,) * 3,
)
LAYOUTS: Mapping[str, Layout] = {
    "SD 1.5": SD15,
    "SD 1.5 inpaint": replace(SD15, in_channels=9),
    "SD 2.x": SD2,
    "SD 2.x v": replace(SD2, v_prediction=True),
    "SD 2.x inpaint": replace(SD2, in_channels=9),
    "SDXL": SDXL,
    "SDXL inpaint": replace(SDXL, in_channels=9),
    "SSD-1B": Layout(
        comfy.supported_models.SSD1B,
        (1, 2, 4),
        (0, 0, 2, 2, 4, 4),
        -1,
        (4, 4, 10, 2, 1, 1, 0, 0, 0),
    ),
    "Segmind Vega": VEGA,
    "Segmind Vega v": replace(VEGA, v_prediction=True),
    "KOALA 700M": KOALA,
    "SDXL refiner": REFINER,
    "SD 1.5 InstructPix2Pix": replace(
        SD15, family=comfy.supported_models.SD15_instructpix2pix, in_channels=8
    ),
    "SDXL InstructPix2Pix": replace(
        SDXL, family=comfy.supported_models.SDXL_instructpix2pix, in_channels=8
    ),
    # As CosXL and Playground 2.5 are marked, on fewer blocks than SDXL's, which they have.
    "EDM v": replace(VEGA, marks={"edm_vpred.sigma_max": 120.0, "edm_vpred.sigma_min": 0.002}),
    "EDM": replace(VEGA, marks={"edm_mean": 0.0, "edm_std": 0.0}),
    "EDM v InstructPix2Pix": replace(
        SDXL,
        family=comfy.supported_models.SDXL_instructpix2pix,
        in_channels=8,
        marks={"edm_vpred.sigma_max": 120.0},
    ),
}
LAYOUT = SD15.unet()


def random_weights(layout: Layout, seed: int) -> dict[str, Tensor]:
    """A state dict in which no layer is zero and attention is neither flat nor one-hot.

    Real checkpoints grow from zero-initialised output layers; left at zero they would hide every
    error behind them.
    """
    unet = UNetModel(
        **layout.unet(),
        dtype=torch.float32,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    gains = GAINS | (DEEP_GAINS if max(layout.encoder) > 1 else {})
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in ((name, tensor.shape) for name, tensor in unet.state_dict().items()):
        noise = torch.randn(shape, generator=generator)
        if noise.ndim > 1:
            gain = next((gain for ending, gain in gains.items() if name.endswith(ending)), 1.0)
            weights[name] = noise * gain / noise[0].numel() ** 0.5
        else:
            # Norms are the only one-dimensional weights.
            weights[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    if layout.family is comfy.supported_models.SD20:
        weights[SD2_BIAS] *= (0.2 if layout.v_prediction else 0.05) / weights[SD2_BIAS].std(
            correction=0
        )
    elif layout.v_prediction:
        weights["v_pred"] = torch.zeros(0)
    return weights | {name: torch.tensor(number) for name, number in layout.marks.items()}


def narrow_family(layout: Layout) -> type:
    """The host's class of the layout, for the narrow widths.

    Put first among the host's, its loaders know files of `random_weights`.
    """
    widths = {
        name: value for name, value in layout.unet().items() if name in layout.family.unet_config
    }
    configs = {
        "unet_extra_config": layout.heads(),
        "unet_config": layout.family.unet_config | widths,
    }
    return type(layout.family.__name__, (layout.family,), configs)


def tiny_unet(layout: Layout, seed: int = 0) -> ModelPatcher:
    """The narrow model of a layout: float32, on the CPU, 4 latent channels."""
    weights = random_weights(layout, seed)
    config = narrow_family(layout)(comfy.model_detection.detect_unet_config(weights, ""))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights, "")
    model.load_model_weights(weights, "")
    cpu = torch.device("cpu")
    return ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def tiny_sd15(seed: int = 0) -> ModelPatcher:
    """The narrow SD 1.5: eps prediction, noise of scale one."""
    return tiny_unet(SD15, seed)


def random_module(module: Any, seed: int) -> Any:
    """A module of the host (a ControlNet, an adapter) with random weights, none zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        bias = 1.0 if name.endswith("weight") else 0.0
        weight.data = noise / noise[0].numel() ** 0.5 if noise.ndim > 1 else bias + 0.1 * noise
    return module.eval().requires_grad_(False)


def random_conditioning(seed: int, tokens: int = 7, pooled: bool = False) -> list:
    """A CONDITIONING of random token embeddings, (1, tokens, CONTEXT), and if asked for a pooled
    one, (1, POOLED).

    Any two have most in common, as prompts have for a trained model: guidance multiplies their
    difference, and rounding errors with it.
    """

    def embedding(*shape: int) -> Tensor:
        shared = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2**32))
        return shared + 0.3 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))

    return [[embedding(tokens, CONTEXT), {"pooled_output": embedding(POOLED)} if pooled else {}]]


def moving_clip(
    frames: int, height: int, width: int, seed: int = 0, layout: Layout = SD15
) -> dict[str, Tensor]:
    """A LATENT of a textured plane that moves one latent pixel a frame, with a little noise:
    matches exist and are not exact.

    The samples are such that the model sees latents of deviation one.
    """
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(CHANNELS, height, width + frames, generator=generator)
    clip = torch.stack([plane[:, :, i : i + width] for i in range(frames)])
    clip = clip + 0.1 * torch.randn(clip.shape, generator=generator)
    return {"samples": layout.latent_format.process_out(clip)}


class TinyVAE:
    """Stands in for a VAE where a node of the host only encodes: patches of 8 x 8 pixels become
    latents by a random projection.
    """

    def encode(self, pixels: Tensor) -> Tensor:
        """IMAGE (N, 8 h, 8 w, 3) -> LATENT samples (N, CHANNELS, h, w)."""
        kernel = torch.randn(CHANNELS, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.conv2d(pixels.movedim(-1, 1), kernel, stride=8)
