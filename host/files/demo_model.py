"""The embedded demo models: a tiny Stable Diffusion of a made-up world, and a tiny SD 3.

They come as objects that every node of the host takes. The UNet has the layout of SD 1.5 made
narrow (the same 12 input and 12 output blocks), the transformer that of SD 3 (eight blocks of 256
channels). Both share a text encoder, a two-layer CLIP on SD 1's tokenizer, and a linear
autoencoder: 4 x 4 patches on 16 principal axes. How they were trained is in demo/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from comfy import (
    latent_formats,
    model_base,
    model_management,
    sd1_clip,
    supported_models,
    supported_models_base,
)
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = Path(__file__).resolve().parents[2] / "demo" / "model.safetensors"
TRANSFORMER_WEIGHTS = WEIGHTS.with_name("transformer.safetensors")
FEW_STEPS_WEIGHTS = WEIGHTS.with_name("few_steps.safetensors")
FEW_STEPS = 8  # that the LoRA for few steps is made for, with scheduler sgm_uniform and cfg 1
TRANSFORMER_SHIFT = 3.0  # as SD 3's
TRANSFORMER_WORDS = 16  # tokens of a prompt that the transformer is given; the world's have 12
UNET, TRANSFORMER, FEW = MODELS = "unet", "transformer", f"unet, {FEW_STEPS} steps"
PATCH = 4
CHANNELS = 16
HEAD_WIDTH = 32
# SD's schedule (betas linear in their roots), continued up to noise of deviation 66. Where SD's
# ends, at 14.6, the mean colour of so small a picture can still be read: a model learns to find it
# there instead of in the prompt, and pure noise leads it to a random colour.
SCHEDULE = {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.02}
TEXT_ENCODER = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    # Bandit takes tokens for passwords.
    "eos_token_id": 49407,  # nosec B105
}


class PatchAutoencoder(torch.nn.Module):
    """A linear autoencoder: 4 x 4 patches on their first 16 principal axes.

    What lies on an axis is divided by the root of its deviation, and has variance one overall.
    Pictures are (B, 3, H, W) in [-1, 1], latents (B, 16, H / 4, W / 4).

    Args:
        mean: The mean patch, (48,).
        basis: The principal axes, (48, 16).
        scale: What latents are divided by, (16,).
        gain: What latents are multiplied by, ().
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor
    gain: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, scale: Tensor, gain: Tensor) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("basis", basis), ("scale", scale), ("gain", gain)):
            self.register_buffer(name, values)

    def encode(self, pictures: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(pictures, PATCH).movedim(1, -1)
        return (
            ((patches - self.mean) @ self.basis / self.scale * self.gain)
            .movedim(-1, 1)
            .contiguous()
        )

    def decode(self, latents: Tensor) -> Tensor:
        patches = latents.movedim(1, -1) / self.gain * self.scale @ self.basis.T + self.mean
        return F.pixel_shuffle(patches.movedim(-1, 1), PATCH).contiguous()

    def rgb_factors(self) -> tuple[list[list[float]], list[float]]:
        """Returns the linear map from latents to each patch's mean colour in [-1, 1], for previews.

        Returns:
            Its factors (16, 3) and what is added to them (3,).
        """

        def colour(patch: Tensor) -> list:
            return patch.unflatten(-1, (3, PATCH * PATCH)).mean(-1).tolist()

        return colour((self.basis * (self.scale / self.gain)).T), colour(self.mean)


class _Latents(latent_formats.LatentFormat):
    latent_channels = CHANNELS
    spatial_downscale_ratio = PATCH


class _Config(supported_models.SD15):
    # The base class assumes 8 heads, whatever their width.
    unet_extra_config = {"num_heads": -1, "num_head_channels": HEAD_WIDTH}
    sampling_settings = SCHEDULE
    latent_format = _Latents

    def model_type(self, state_dict: dict, prefix: str = "") -> model_base.ModelType:
        return model_base.ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        # More than 4 input channels would count as inpainting.
        return False


class _TransformerConfig(supported_models.SD3):
    sampling_settings = {"shift": TRANSFORMER_SHIFT}
    latent_format = _Latents


class _TextModel(sd1_clip.SDClipModel):
    def __init__(
        self,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict | None = None,
    ) -> None:
        settings = {"textmodel_json_config": dict(TEXT_ENCODER), "return_projected_pooled": False}
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, **settings)


class _TextEncoder(sd1_clip.SD1ClipModel):
    inner = _TextModel

    def __init__(
        self,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict | None = None,
    ) -> None:
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, clip_model=self.inner
        )


class _ShortTextModel(_TextModel):
    def encode_token_weights(self, token_weight_pairs: Any) -> tuple[Any, ...]:
        tokens, *rest = super().encode_token_weights(token_weight_pairs)
        return tokens[:, :TRANSFORMER_WORDS], *rest


class _ShortTextEncoder(_TextEncoder):
    inner = _ShortTextModel


class _WordTokenizer(sd1_clip.SDTokenizer):
    def __init__(
        self, embedding_directory: str | None = None, tokenizer_data: dict | None = None
    ) -> None:
        width = TEXT_ENCODER["hidden_size"]
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            embedding_size=width,
        )


class _Tokenizer(sd1_clip.SD1Tokenizer):
    def __init__(
        self, embedding_directory: str | None = None, tokenizer_data: dict | None = None
    ) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            tokenizer=_WordTokenizer,
        )


class _VAE(comfy.sd.VAE):
    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        # The base class builds its model from weights it knows; a pixel-space one is the cheapest
        # to replace.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
        self.first_stage_model = autoencoder.train(False)
        self.downscale_ratio = self.upscale_ratio = PATCH
        self.latent_channels = CHANNELS
        self.memory_used_encode = lambda shape, dtype: (
            16 * shape[2] * shape[3] * model_management.dtype_size(dtype)
        )
        self.memory_used_decode = lambda shape, dtype: (
            16 * shape[2] * shape[3] * PATCH**2 * model_management.dtype_size(dtype)
        )
        self.patcher = ModelPatcher(
            autoencoder,
            load_device=self.device,
            offload_device=model_management.vae_offload_device(),
        )


def load_demo_model(
    kind: str = UNET, path: Path = WEIGHTS, transformer: Path = TRANSFORMER_WEIGHTS
) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Loads an embedded model.

    Args:
        kind: One of MODELS. FEW is the UNet with the LoRA that a distillation left, put on as any
            LoRA is.
        path: The file of the weights of UNet, text encoder and autoencoder.
        transformer: The file of the transformer's.

    Returns:
        MODEL, CLIP and VAE.

    Raises:
        FileNotFoundError: Without the file.
        ValueError: Where the file is only the pointer that Git LFS left in its place.
    """
    weights = _read(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in weights.items()
            if name.startswith(prefix)
        }

    autoencoder = PatchAutoencoder(**part("codec."))
    if kind == TRANSFORMER:
        found = _read(transformer)
        model, encoder = _load_transformer(found, autoencoder), _ShortTextEncoder
    else:
        model, encoder = _load_unet(part("unet."), autoencoder), _TextEncoder
    if kind == FEW:
        model, _ = comfy.sd.load_lora_for_models(model, None, _read(FEW_STEPS_WEIGHTS), 1.0, 0.0)
    return model, _load_text_encoder(part("text."), encoder), _VAE(autoencoder)


def _read(path: Path) -> dict[str, Tensor]:
    """The weights of a file, by name."""
    with path.open("rb") as file:
        if file.read(8) == b"version ":
            raise ValueError(f"{path} is a Git LFS pointer, not the weights")
    return load_file(path)


def _load_unet(weights: dict[str, Tensor], autoencoder: PatchAutoencoder) -> ModelPatcher:
    found = comfy.model_detection.detect_unet_config(weights, "")
    return _load(_Config(found), weights, autoencoder)


def _load_transformer(weights: dict[str, Tensor], autoencoder: PatchAutoencoder) -> ModelPatcher:
    found = comfy.model_detection.detect_unet_config(weights, "")
    # The host takes a transformer to be as deep as it has heads.
    blocks = {name.split(".")[1] for name in weights if name.startswith("joint_blocks.")}
    return _load(_TransformerConfig({**found, "num_blocks": len(blocks)}), weights, autoencoder)


def _load(config: Any, weights: dict[str, Tensor], autoencoder: PatchAutoencoder) -> ModelPatcher:
    device = model_management.get_torch_device()
    config.latent_format.latent_rgb_factors, config.latent_format.latent_rgb_factors_bias = (
        autoencoder.rgb_factors()
    )
    supported = config.supported_inference_dtypes
    dtype = model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights), supported_dtypes=supported
    )
    config.set_inference_dtype(dtype, model_management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(weights, "")
    model.load_model_weights(weights, "")
    return ModelPatcher(
        model, load_device=device, offload_device=model_management.unet_offload_device()
    )


def _load_text_encoder(weights: dict[str, Tensor], encoder: type) -> comfy.sd.CLIP:
    target = supported_models_base.ClipTarget(_Tokenizer, encoder)
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(
        target, embedding_directory=embeddings, parameters=comfy.utils.calculate_parameters(weights)
    )
    clip.load_sd(weights)
    return clip
