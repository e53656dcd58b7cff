"""diffusers pipelines with the weights of the narrow UNets, and a text encoder and a VAE as narrow.

Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd1_clip
import comfy.utils
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .tiny_models import CHANNELS, CONTEXT, SD15, Layout, random_module, random_weights


def tiny_unet2d(layout: Layout, seed: int = 0) -> Any:
    """diffusers' UNet of a layout of SD 1.x or 2.x with the very weights that
    `tiny_unet` has in the host's.
    """
    weights, config = random_weights(layout, seed), layout.unet()
    widths = [config["model_channels"] * level for level in config["channel_mult"]]
    heads = [
        width // config["num_head_channels"]
        if config["num_head_channels"] > 0
        else config["num_heads"]
        for width in widths
    ]
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=config["num_res_blocks"],
        block_out_channels=widths,
        attention_head_dim=heads,  # their number, whatever the name
        cross_attention_dim=CONTEXT,
        use_linear_projection=config["use_linear_in_transformer"],
    )
    names = comfy.utils.unet_to_diffusers(config)
    unet.load_state_dict({name: weights[names[name]] for name in unet.state_dict()})
    return unet.eval()


def tiny_pipeline(layout: Layout = SD15, seed: int = 0) -> Any:
    """A StableDiffusionPipeline with random weights, of 8 pixels per latent."""
    width = 8
    text = CLIPTextConfig(
        hidden_size=CONTEXT, intermediate_size=CONTEXT, num_hidden_layers=1, num_attention_heads=2
    )
    vae = AutoencoderKL(
        block_out_channels=[width] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=CHANNELS,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction" if layout.v_prediction else "epsilon",
    )
    pipe = StableDiffusionPipeline(
        random_module(vae, 1),
        random_module(CLIPTextModel(text), 2),
        CLIPTokenizer.from_pretrained(
            Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer",
            model_max_length=text.max_position_embeddings,
        ),
        tiny_unet2d(layout, seed),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
