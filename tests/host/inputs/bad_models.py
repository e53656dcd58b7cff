"""Bad input: models, and what belongs to another model or another stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from tokenflow_pack.tokenflow_ops import SourceFeatures
from torch import Tensor, nn

from ..helpers import POSITIVE, Decoder, call
from ..once import once_a_session
from ..small import extracted, inverted, matched, tiny_model
from ..tiny_models import SDXL, tiny_sd15, tiny_unet
from .bad_input import (
    APPLY,
    BUILD,
    CHECK,
    CLIP,
    CORRESPONDENCES,
    ENCODE,
    EXTRACT,
    FEATURES,
    FIND_MASK,
    INJECTION,
    INVERT,
    LOAD,
    METRICS,
    NODES,
    SAMPLER,
    SAVE,
    TO_VIDEO,
    TUNE,
    Row,
    frames,
    wrong,
)

CPU = torch.device("cpu")
IMAGE_MODELS = "SD 1.x, SD 2.x, SDXL, SD 3"
UNKNOWN = "no image model whose attention TokenFlow knows"
SAME = "same checkpoint"


class Empty:
    """A VAE that decodes to nothing."""

    decode = print


@once_a_session
def no_unet() -> Any:
    """A model that is neither a UNet nor a transformer of the host."""
    model = nn.Module()
    model.diffusion_model = nn.Sequential(nn.Linear(4, 4))
    return ModelPatcher(model, CPU, CPU)


@once_a_session
def autoencoder() -> Any:
    """A VAE's own patcher."""
    return ModelPatcher(nn.Linear(4, 4), CPU, CPU)


@once_a_session
def video_model() -> Any:
    """A UNet with a layer that attends over time."""
    model, layer = tiny_sd15(5), SpatialVideoTransformer.__new__(SpatialVideoTransformer)
    nn.Module.__init__(layer)
    model.model.diffusion_model.add_module("time", layer)
    return model


@once_a_session
def sdxl() -> Any:
    return tiny_unet(SDXL)


def flow_model() -> Any:
    return ModelSamplingSD3().patch(tiny_model(), 3.0)[0]


def distilled() -> Any:
    """Another noise schedule on the same weights, of fifty noise levels."""
    return ModelSamplingDiscrete().patch(tiny_model(), "lcm", False)[0]


def merged() -> Any:
    """ToMe changes the number of tokens, which nothing matches then."""
    return call(TomePatchModel.execute, tiny_model(), 0.5)[0]


def broken() -> Any:
    """A model whose noise is NaN."""
    return _answering(lambda found: found * torch.nan)


def apart() -> Any:
    """A model whose answer does not depend on its weights, as far as torch sees."""
    return _answering(Tensor.detach)


def _answering(change: Callable[[Tensor], Tensor]) -> Any:
    model = tiny_model().clone()
    model.set_model_unet_function_wrapper(
        lambda apply_model, args: change(apply_model(args["input"], args["timestep"], **args["c"]))
    )
    return model


def guided() -> Any:
    return call(SelfAttentionGuidance.execute, tiny_model(), 0.5, 2.0)[0]


def sliding() -> Any:
    """Context windows of the host."""
    model = tiny_model().clone()
    model.model_options["context_handler"] = object()
    return model


def caching() -> Any:
    model = tiny_model().clone()
    model.model_options["transformer_options"]["easycache"] = SimpleNamespace(name="EasyCache")
    return model


MODELS = [
    *(
        wrong(f"no UNet: {node}", node, "model", no_unet, UNKNOWN, IMAGE_MODELS)
        for node in (INVERT, EXTRACT, APPLY, FIND_MASK)
    ),
    *(
        wrong(
            f"a VAE's patcher: {node}",
            node,
            "model",
            autoencoder,
            UNKNOWN,
            IMAGE_MODELS,
        )
        for node in (SAMPLER, CHECK)
    ),
    *(
        wrong(
            f"a video model: {node}", node, "model", video_model, "attends over time", IMAGE_MODELS
        )
        for node in (INVERT, TUNE)
    ),
    *(
        wrong(
            f"a flow model: {node}", node, "model", flow_model, "not the one the source was", SAME
        )
        for node in (APPLY, LOAD)
    ),
    *(
        wrong(
            f"another checkpoint: {node}",
            node,
            "model",
            lambda: tiny_model(9),
            "not the one the source was",
            SAME,
        )
        for node in (EXTRACT, SAMPLER, APPLY, CHECK, LOAD, FIND_MASK)
    ),
    *(
        wrong(
            f"another schedule: {node}",
            node,
            "model",
            distilled,
            "not the one the source was",
            SAME,
        )
        for node in (EXTRACT, SAMPLER, FIND_MASK)
    ),
    wrong("a model that returns NaN", INVERT, "model", broken, "NaN", "precision"),
    wrong(
        "a model whose features are NaN",
        EXTRACT,
        "model",
        lambda: nan_inside(),
        "NaN or infinite features",
        "precision",
    ),
    wrong("an edit that becomes NaN", SAMPLER, "model", broken, "the edit has NaN", "precision"),
    wrong(
        "a model that computes apart from its weights",
        TUNE,
        "model",
        apart,
        "no gradient",
        "TensorRT",
    ),
    wrong("merged tokens", SAMPLER, "model", merged, "tokens here and", "ToMe"),
    wrong(
        "attention that guidance replaces",
        INVERT,
        "model",
        guided,
        "Self-Attention Guidance",
        "to the sampler alone",
    ),
    wrong("a cache that skips passes", SAMPLER, "model", caching, "EasyCache", "LazyCache"),
    wrong("context windows", EXTRACT, "model", sliding, "context handler", "Remove it"),
    wrong(
        "a text in place of a model",
        INVERT,
        "model",
        "sd15.safetensors",
        "'sd15.safetensors', which is no MODEL",
        "MODEL",
    ),
    wrong("a class in place of a model", TUNE, "model", lambda: ModelPatcher, "type", "MODEL"),
    wrong("no model", APPLY, "model", None, "nothing there", "Connect a MODEL"),
]


def nan_inside() -> Any:
    """A model whose first layers give NaN; its noise is never looked at."""

    def wrapper(apply_model: Any, args: dict[str, Any]) -> Tensor:
        return apply_model(args["input"] * torch.nan, args["timestep"], **args["c"])

    model = tiny_model().clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


# What belongs to another stage


def other_layers() -> Any:
    """Correspondences of a model without its first layer."""
    features = extracted(*CLIP)
    shapes = dict(list(features.shapes.items())[1:])
    matched_by = {name: features.matched_by[name] for name in shapes}
    fewer = SourceFeatures(
        features.inversion, shapes, matched_by, features.steps, features.store, features.compute
    )
    return dataclasses.replace(matched(*CLIP), features=fewer)


def stage(node: str, socket: str, value: Any, kind: str) -> Row:
    """One of the pack's sockets with what is none of its type."""
    name = f"{type(value).__name__} in place of {socket}: {node}"
    return wrong(name, node, socket, lambda: value, f"no TOKENFLOW_{kind}", f"TOKENFLOW_{kind}")


ANY_CLIP = SimpleNamespace(tokenize=None, encode_from_tokens=None)
STAGES = [
    wrong(
        "correspondences of other layers",
        SAMPLER,
        "correspondences",
        other_layers,
        "other self-attention layers",
        "this model",
    ),
    stage(SAVE, "inversion", "TokenFlow", "INVERSION"),
    stage(EXTRACT, "inversion", {"samples": torch.zeros(1)}, "INVERSION"),
    stage(CHECK, "inversion", POSITIVE, "INVERSION"),
    stage(FIND_MASK, "inversion", 0.5, "INVERSION"),
    stage(BUILD, "features", inverted, "FEATURES"),
    stage(FEATURES, "features", 5, "FEATURES"),
    stage(CORRESPONDENCES, "correspondences", ["a", 1], "CORRESPONDENCES"),
    stage(APPLY, "correspondences", NODES[INJECTION], "CORRESPONDENCES"),
    stage(SAMPLER, "injection", {"attention_until": 0.5}, "INJECTION"),
    stage(APPLY, "injection", frames, "INJECTION"),
    wrong(
        "features in place of correspondences",
        SAMPLER,
        "correspondences",
        lambda: extracted(*CLIP),
        "SourceFeatures",
        "CORRESPOND",
    ),
    wrong("no VAE", CHECK, "vae", None, "nothing there", "Connect a VAE"),
    wrong(
        "a VAE that cannot decode",
        CHECK,
        "vae",
        lambda: object(),
        "type object, which is no VAE",
        "VAE",
    ),
    wrong("a VAE that cannot encode", ENCODE, "vae", Decoder, "cannot encode", "image model"),
    wrong("a VAE that gives nothing", TO_VIDEO, "vae", Empty, "cannot decode", "encoded with"),
    wrong("pictures as a video", ENCODE, "video", frames, "Tensor, which is no VIDEO", "VIDEO"),
    wrong(
        "a model in place of a CLIP",
        METRICS,
        "clip",
        tiny_model,
        "ModelPatcher, which is no CLIP",
        "CLIP",
    ),
    wrong(
        "a CLIP without its vision model",
        METRICS,
        "clip_vision",
        None,
        "nothing there",
        "clip_vision",
        clip=ANY_CLIP,
        prompt="a star",
    ),
]
ROWS = [*MODELS, *STAGES]
