"""An edit for a server of its own process: two grey frames on the embedded model,
with features on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from launch.comfyui.client import run_prompt, silent
from launch.comfyui.server import Server

Prompt = dict[str, dict[str, Any]]


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def inverting() -> Prompt:
    """What both begin with."""
    schedule = {
        "steps": 2,
        "cfg": 1.0,
        "scheduler": "normal",
        "refinement": "none",
        "iterations": 0,
        "depth": 1.0,
    }
    return {
        "demo": _node("TokenFlowLoadDemoModel"),
        "positive": _node("CLIPTextEncode", clip=["demo", 1], text="a red ball on grass"),
        "negative": _node("CLIPTextEncode", clip=["demo", 1], text=""),
        "frames": _node("EmptyImage", width=64, height=64, batch_size=2, color=0x808080),
        "encoded": _node("VAEEncode", pixels=["frames", 0], vae=["demo", 2]),
        "invert": _node(
            "TokenFlowInvertVideo",
            model=["demo", 0],
            latents=["encoded", 0],
            positive=["positive", 0],
            **schedule,
        ),
    }


def editing(cfg: float = 4.0) -> Prompt:
    """The edit."""
    kept = {"layers": "all", "steps": "every", "every": 1, "noise_level": 0.1, "storage": "disk"}
    matched = {
        "keyframe_interval": 2,
        "intervals": "even",
        "keyframes": "fixed",
        "seed": 0,
        "backend": "torch",
        "search_window": 0,
    }
    sampled = {
        "cfg": cfg,
        "sampler_name": "euler",
        "seed": 0,
        "start": 1.0,
        "consistency": "tokenflow",
        "attended_keyframes": 0,
    }
    prompted = {"positive": ["positive", 0], "negative": ["negative", 0]}
    return {
        **inverting(),
        "extract": _node(
            "TokenFlowExtractFeatures", model=["demo", 0], inversion=["invert", 0], **kept
        ),
        "build": _node("TokenFlowBuildCorrespondences", features=["extract", 0], **matched),
        "edit": _node(
            "TokenFlowSampler",
            model=["demo", 0],
            correspondences=["build", 0],
            **prompted,
            **sampled,
        ),
        "keep": _node("SaveLatent", samples=["edit", 0], filename_prefix="edited"),
    }


def applied() -> Prompt:
    """The same edit by Apply TokenFlow and the host's own sampler."""
    prompt = editing()
    given = prompt["edit"]["inputs"]
    patched = {name: given[name] for name in ("model", "correspondences", "consistency")}
    sampled = {name: given[name] for name in ("positive", "negative", "cfg", "sampler_name")}
    return prompt | {
        "apply": _node("TokenFlowApply", **patched, attended_keyframes=given["attended_keyframes"]),
        "edit": _node(
            "KSamplerAdvanced",
            model=["apply", 0],
            latent_image=["invert", 1],
            add_noise="disable",
            noise_seed=0,
            steps=2,
            scheduler="normal",
            start_at_step=0,
            end_at_step=2,
            return_with_leftover_noise="disable",
            **sampled,
        ),
    }


def saving() -> Prompt:
    """The edit, and its inversion stored."""
    return {
        **editing(),
        "save": _node("TokenFlowSaveInversion", inversion=["invert", 0], filename_prefix="kept"),
    }


def edited(
    server: Server, cfg: float = 4.0, listener: Callable[[str, dict[str, Any]], None] = silent
) -> Tensor:
    """The edit's latents."""
    (file,) = [
        name
        for name in run_prompt(server.address, editing(cfg), listener).files()
        if name.startswith("edited")
    ]
    return load_file(server.output / file)["latent_tensor"]
