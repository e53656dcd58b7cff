"""What speed is measured on: an embedded model, or a published layout with random weights.

Each comes with a moving clip and prompts. Narrow layouts have few channels and few blocks, to
rehearse with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.ops
import comfy.sample
import comfy.samplers
import torch
from comfy import model_management, supported_models
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from tokenflow_pack.host.files.demo_model import TRANSFORMER, UNET
from tokenflow_pack.nodes.correspondences import EVEN, BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling.sampler import Sampler
from torch import Tensor

from bench.tools.case import World, demo_clip

# What the host does not say about a layout: see comfy/model_detection.py.
COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD15: dict[str, Any] = {
    "channel_mult": (1, 2, 4, 4),
    "num_res_blocks": [2] * 4,
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3,
}
SDXL: dict[str, Any] = {
    "num_classes": "sequential",
    "channel_mult": (1, 2, 4),
    "num_res_blocks": [2] * 3,
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3,
}
LAYOUTS = {"sd15": (supported_models.SD15, SD15), "sdxl": (supported_models.SDXL, SDXL)}
SD3 = "sd3"  # medium
MODELS = ("embedded", TRANSFORMER, *LAYOUTS, SD3)
FLOWS = (TRANSFORMER, SD3)
TOKENS = 77  # of a prompt
POOLED = 1280  # SDXL's, whose vector holds six more numbers, 256 wide each
# To rehearse with: few channels, two resolutions, and one ResBlock where there are two.
NARROW: dict[str, dict[str, Any]] = {
    "sd15": {
        "model_channels": 64,
        "channel_mult": (1, 2),
        "num_res_blocks": [1] * 2,
        "transformer_depth": [1, 0],
        "transformer_depth_output": [1] * 3 + [0],
    },
    "sdxl": {
        "model_channels": 64,
        "channel_mult": (1, 2),
        "num_res_blocks": [1] * 2,
        "transformer_depth": [0, 2],
        "transformer_depth_middle": 2,
        "transformer_depth_output": [0] * 2 + [2] * 2,
    },
}
POOL = 1 << 25  # more than any layer has weights
# Branches small enough that the noise changes no faster than the latents do,
# attention neither flat nor one-hot.
GAINS = {
    "out_layers.3.weight": 0.3,
    "proj_out.weight": 0.3,
    "attn1.to_q.weight": 1.4,
    "attn1.to_k.weight": 1.4,
    "attn1.to_out.0.weight": 1.4,
    "ff.net.2.weight": 0.5,
    "adaLN_modulation.1.weight": 0.5,
    "mlp.fc2.weight": 0.5,
    "final_layer.linear.weight": 0.15,
}


def sd3_layout(depth: int) -> dict[str, Any]:
    """SD 3 of so many blocks, each head 64 wide and as many heads as blocks."""
    return {
        "input_size": None,
        "patch_size": 2,
        "in_channels": 16,
        "depth": depth,
        "adm_in_channels": 2048,
        "num_patches": 192 * 192,
        "pos_embed_max_size": 192,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 64 * depth},
        },
    }


@dataclass
class Subject:
    """A model and a clip for it, with the stages of an edit.

    kind: one of MODELS. name: with size and frames, for people. clip: a LATENT. source, edit,
    negative: CONDITIONINGs.
    """

    kind: str
    name: str
    model: Any
    clip: dict[str, Tensor]
    source: Any
    edit: Any
    negative: Any

    @property
    def flow(self) -> bool:
        """Whether it is a flow model, and a transformer."""
        return self.kind in FLOWS

    @property
    def scheduler(self) -> str:
        return "simple" if self.flow else "normal"

    def invert(self, steps: int, **choices: Any) -> Any:
        """choices: inputs of DDIM Invert Video."""
        inputs = {
            "model": self.model,
            "latents": self.clip,
            "positive": self.source,
            "steps": steps,
            "scheduler": self.scheduler,
            "check_reconstruction": False,
        }
        return InvertVideo.execute(**inputs | choices).args[0]

    def extract(self, inversion: Any) -> Any:
        return ExtractFeatures.execute(model=self.model, inversion=inversion).args[0]

    def build(self, features: Any, interval: int, intervals: str = EVEN) -> Any:
        return BuildCorrespondences.execute(
            features=features, keyframe_interval=interval, intervals=intervals
        ).args[0]

    def sample(self, found: Any, **choices: Any) -> Tensor:
        """With Plug-and-Play. choices: inputs of TokenFlow Sampler."""
        prompts = {
            "positive": self.edit,
            "negative": self.negative,
            "injection": PlugAndPlay.execute().args[0],
        }
        return _finite(
            Sampler.execute(
                **{"model": self.model, "correspondences": found} | prompts | choices
            ).args[0]
        )

    def sample_plainly(self, inversion: Any, cfg: float) -> Tensor:
        """The host's own sampling, frame by frame, from the inverted latents."""
        noisy = self.model.get_model_object("latent_format").process_out(inversion.latents[0])
        # A flow model's host drops the latents at pure noise: there they are the noise.
        noise = noisy if self.flow else torch.zeros_like(noisy)
        inputs = (
            noise,
            cfg,
            comfy.samplers.sampler_object("euler"),
            inversion.sigmas,
            self.edit,
            self.negative,
            noisy,
        )
        return _finite({"samples": comfy.sample.sample_custom(self.model, *inputs, seed=0)})


def _finite(latents: dict[str, Tensor]) -> Tensor:
    if not bool(latents["samples"].isfinite().all()):
        raise SystemExit("NaN or infinite latents: nothing that is worth timing")
    return latents["samples"]


def make_subject(model: str, frames: int, size: int, narrow: bool = False) -> Subject:
    """model: one of MODELS. size: height and width in pixels. narrow: a layout's channels."""
    name = f"{model} model, {size} x {size} pixels, {frames} frames"
    if model == SD3:
        return _random_transformer(name, frames, size, narrow)
    if model in LAYOUTS:
        return _random(name, model, frames, size, narrow)
    return _embedded(name, model, frames, size)


def _embedded(name: str, kind: str, frames: int, size: int) -> Subject:
    world = World(TRANSFORMER if kind == TRANSFORMER else UNET)
    scene, times = demo_clip()
    pictures = torch.stack([scene.render(t, size) for t in times]).movedim(1, -1)
    latents = world.vae.encode(pictures)
    source = scene.caption()
    prompts = (world.encode(text) for text in (source, source.replace(scene.surface, "gold"), ""))
    return Subject(
        kind, name, world.model, {"samples": latents[to_and_fro(len(times), frames)]}, *prompts
    )


def to_and_fro(length: int, frames: int) -> Tensor:
    """(frames,) positions in a clip of `length` frames,
    forwards and backwards for as long as it takes.
    """
    return length - 1 - (torch.arange(frames) % (2 * length - 2) - (length - 1)).abs()


def _random(name: str, layout: str, frames: int, size: int, narrow: bool) -> Subject:
    family, blocks = LAYOUTS[layout]
    pooled = 0 if family.unet_config["adm_in_channels"] is None else POOLED
    latents = _moving_plane(4, frames, size // 8) / family.latent_format().scale_factor
    prompts = (_prompt(seed, family.unet_config["context_dim"], pooled) for seed in range(3))
    settings = {**COMMON, **family.unet_config, **blocks, **(NARROW[layout] if narrow else {})}
    config = family(settings)
    shell = UNetModel(**config.unet_config, device="meta", operations=comfy.ops.disable_weight_init)
    model = _random_model(config, shell)
    return Subject(layout, name.replace("model", "layout"), model, {"samples": latents}, *prompts)


def _random_transformer(name: str, frames: int, size: int, narrow: bool) -> Subject:
    layout, family = sd3_layout(3 if narrow else 24), supported_models.SD3
    latents = _moving_plane(layout["in_channels"], frames, size // 8)
    prompts = (_prompt(seed, 4096, layout["adm_in_channels"]) for seed in range(3))
    config = family({**family.unet_config, **layout})
    config.unet_config = layout
    shell = OpenAISignatureMMDITWrapper(
        **layout, device="meta", operations=comfy.ops.disable_weight_init
    )
    model = _random_model(config, shell)
    return Subject(SD3, name.replace("model", "layout"), model, {"samples": latents}, *prompts)


def _random_model(config: Any, shell: torch.nn.Module) -> ModelPatcher:
    """A model of true widths, in the type the host chooses for the device.

    config: of the host's class. shell: its network, without memory.
    """
    count = sum(parameter.numel() for parameter in shell.parameters())
    device, supported = model_management.get_torch_device(), config.supported_inference_dtypes
    dtype = model_management.unet_dtype(model_params=count, supported_dtypes=supported)
    config.set_inference_dtype(dtype, model_management.unet_manual_cast(dtype, device, supported))
    model = config.get_model({}, "")
    with torch.no_grad():
        draw_weights(model.diffusion_model)
    return ModelPatcher(
        model, load_device=device, offload_device=model_management.unet_offload_device()
    )


def draw_weights(unet: torch.nn.Module) -> None:
    """Random weights, none zero.

    All are cut from one pool of random numbers: there are billions,
    and drawing each takes a minute.
    """
    generator = torch.Generator().manual_seed(0)
    pool = torch.empty(POOL).uniform_(-1, 1, generator=generator)
    for path, weight in (*unet.named_parameters(), *unet.named_buffers()):
        if weight.numel() >= POOL or not weight.is_floating_point():
            raise ValueError(f"{path} is no weight to draw, or has too many numbers")
        first = int(torch.randint(POOL - weight.numel(), (1,), generator=generator))
        numbers = pool[first : first + weight.numel()].view(weight.shape)
        if weight.ndim == 1:  # norms and biases
            weight.copy_(0.1 * numbers + (1.0 if path.endswith("weight") else 0.0))
        else:
            gain = next((gain for ending, gain in GAINS.items() if path.endswith(ending)), 1.0)
            weight.copy_(numbers).mul_(gain * (3 / weight[0].numel()) ** 0.5)


def _prompt(seed: int, width: int, pooled: int) -> list:
    """A CONDITIONING; any two have most in common, as prompts have for a trained model.

    width: of its tokens. pooled: of the vector for the whole prompt, 0 for none.
    """

    def embedding(*shape: int) -> Tensor:
        shared = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2**32))
        return shared + 0.3 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))

    return [[embedding(TOKENS, width), {"pooled_output": embedding(pooled)} if pooled else {}]]


def _moving_plane(channels: int, frames: int, size: int) -> Tensor:
    """(N, channels, size, size): a textured plane that moves one latent pixel a frame,
    with a little noise.
    """
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(channels, size, size + frames, generator=generator)
    clip = torch.stack([plane[:, :, i : i + size] for i in range(frames)])
    return clip + 0.1 * torch.randn(clip.shape, generator=generator)
