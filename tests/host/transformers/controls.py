"""The host's ControlNets for its transformers, narrow and with random weights, and autoencoders for
the latents of their hints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.controlnet
import comfy.latent_formats
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.cldm.dit_embedder import ControlNetEmbedder
from comfy.cldm.mmdit import ControlNet as MMDiTControl
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.qwen_image.controlnet import QwenImageControlNetModel
from comfy.ldm.wan.vae import WanVAE
from comfy_extras.nodes_model_patch import (
    QwenImageBlockWiseControlNet,
    QwenImageDiffsynthControlnet,
)

from ..helpers import call
from ..once import once_a_session
from ..tiny_models import random_module
from ..tiny_transformers import LAYOUTS, POOLED

LATENTS = 16
CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "dtype": torch.float32,
    "device": CPU,
    "operations": comfy.ops.disable_weight_init,
}


@once_a_session
def autoencoder(of_films: bool = False) -> Any:
    """A VAE of pictures as SD 3's and Flux's, or of films as Qwen-Image's."""
    if of_films:
        weights = random_module(
            WanVAE(dim=8, z_dim=LATENTS, temperal_downsample=[False, True, True]), 0
        ).state_dict()
        return comfy.sd.VAE(sd=weights, dtype=torch.float32)
    layout = {
        "double_z": True,
        "z_channels": LATENTS,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    parts = {"ddconfig": layout, "embed_dim": LATENTS}
    weights = random_module(AutoencoderKL(**parts), 0).state_dict()
    return comfy.sd.VAE(sd=weights, config={"params": parts}, dtype=torch.float32)


def _of_latents(model: Any, latent_format: Any, **more: Any) -> Any:
    return comfy.controlnet.ControlNet(
        model, compression_ratio=1, latent_format=latent_format, load_device=CPU, **more
    )


def _sd3() -> Any:
    layout = {**LAYOUTS["SD 3"].config, "num_blocks": 3}
    model = MMDiTControl(control_latent_channels=LATENTS, **layout, **COMMON)
    table = torch.randn(model.pos_embed.shape, generator=torch.Generator().manual_seed(0))
    model.pos_embed.copy_(0.5 * table)
    latents = comfy.latent_formats.SD3()
    latents.shift_factor = 0  # as its loader
    return _of_latents(random_module(model, 0), latents)


def _sd35() -> Any:
    model = ControlNetEmbedder(
        img_size=None,
        patch_size=2,
        in_chans=LATENTS,
        num_layers=2,
        main_model_double=5,
        double_y_emb=True,
        attention_head_dim=64,
        num_attention_heads=3,
        adm_in_channels=POOLED,
        **COMMON,
    )
    return comfy.controlnet.ControlNetSD35(
        random_module(model, 0),
        compression_ratio=1,
        latent_format=comfy.latent_formats.SD3(),
        load_device=CPU,
    )


def _flux(latent_input: bool) -> Any:
    layout = {**LAYOUTS["Flux"].settings, "depth": 2, "depth_single_blocks": 2}
    modes = {"num_union_modes": 3, "control_latent_channels": LATENTS} if latent_input else {}
    model = ControlNetFlux(latent_input=latent_input, **modes, **layout, **COMMON)
    # Published ones know how many blocks Flux has.
    model.main_model_double, model.main_model_single = 3, 3
    conds = {"extra_conds": ["y", "guidance"]}
    random_module(model, 0)
    if not latent_input:
        return comfy.controlnet.ControlNet(model, load_device=CPU, **conds)
    control = _of_latents(model, comfy.latent_formats.Flux(), **conds)
    control.set_extra_arg("control_type", [1])
    return control


def _qwen() -> Any:
    layout = {**LAYOUTS["Qwen-Image"].config, "num_layers": 2}
    model = QwenImageControlNetModel(**layout, **COMMON)
    model.main_model_double = 5
    return _of_latents(random_module(model, 0), comfy.latent_formats.Wan21(), extra_conds=[])


def on_the_model(model: Any, image: Any) -> Any:
    """Qwen-Image under a ControlNet that is a patch on it (DiffSynth's)."""
    width = model.model.diffusion_model.inner_dim
    network = QwenImageBlockWiseControlNet(num_layers=5, dim=width, **COMMON)
    patch = comfy.model_patcher.ModelPatcher(random_module(network, 0), CPU, CPU)
    node = QwenImageDiffsynthControlnet()
    return call(node.diffsynth_controlnet, model, patch, autoencoder(True), image, 0.5)[0]


# By name: the model's layout, and what makes the ControlNet.
CONTROLS: dict[str, tuple[str, Callable[[], Any]]] = {
    "SD 3": ("SD 3", _sd3),
    "SD 3.5 large": ("SD 3", _sd35),
    "Flux, InstantX union": ("Flux", lambda: _flux(True)),
    "Flux, XLabs": ("Flux", lambda: _flux(False)),
    "Qwen-Image": ("Qwen-Image", _qwen),
}


@once_a_session
def control(name: str) -> Any:
    """The ControlNet."""
    return CONTROLS[name][1]()


def vae_of(name: str) -> Any:
    """What encodes its hints; None where it takes pixels."""
    return None if "XLabs" in name else autoencoder(name == "Qwen-Image")
