"""The same graph and seed give the same bits: here on another server,
with other passes and other searches.

After interrupts, in the next run on what was finished: tests/host/faults. From a stored inversion:
test_stored.py. Ties: tests/ops/matching/test_search.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from launch.comfyui.client import run_prompt
from launch.comfyui.server import Server
from tests.conftest import COMFYUI

from ..helpers import relative_error


def prompt(frames_per_pass: int = 0, backend: str = "auto") -> dict[str, dict[str, Any]]:
    """An edit of the embedded clip's first frames with random keyframes,
    injection and all defaults.
    """

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    model, passes = ["demo", 0], {"frames_per_pass": frames_per_pass}
    sampled = {
        "correspondences": ["build", 0],
        "injection": ["inject", 0],
        "cfg": 5.0,
        "sampler_name": "euler",
        "seed": 1,
    }
    sampled |= {"positive": ["target", 0], "negative": ["negative", 0]}
    return {
        "demo": node("TokenFlowLoadDemoModel"),
        "source": node("CLIPTextEncode", clip=["demo", 1], text="a red star moving right on sand"),
        "target": node("CLIPTextEncode", clip=["demo", 1], text="a gold star moving right on sand"),
        "negative": node("CLIPTextEncode", clip=["demo", 1], text=""),
        "video": node("LoadVideo", file="tokenflow_star.mp4"),
        "clip": node("GetVideoComponents", video=["video", 0]),
        "frames": node("ImageFromBatch", image=["clip", 0], batch_index=0, length=3),
        "encoded": node("VAEEncode", pixels=["frames", 0], vae=["demo", 2]),
        "invert": node(
            "TokenFlowInvertVideo",
            model=model,
            latents=["encoded", 0],
            positive=["source", 0],
            steps=2,
            cfg=1.0,
            **passes,
        ),
        "extract": node("TokenFlowExtractFeatures", model=model, inversion=["invert", 0], **passes),
        "build": node(
            "TokenFlowBuildCorrespondences",
            features=["extract", 0],
            keyframe_interval=2,
            intervals="even",
            seed=3,
            backend=backend,
        ),
        "inject": node("TokenFlowPlugAndPlay"),
        "edit": node("TokenFlowSampler", model=model, **sampled, **passes),
        "keep": node("SaveLatent", samples=["edit", 0], filename_prefix="determinism"),
    }


def latents(server: Server, **choices: Any) -> Tensor:
    known, graph = server.get("/object_info"), prompt(**choices)
    for entry in graph.values():  # the page sends every input, with its default
        required = known[entry["class_type"]]["input"]["required"]
        entry["inputs"] = {
            name: spec[1]["default"] for name, spec in required.items() if "default" in spec[-1]
        } | entry["inputs"]
    (file,) = run_prompt(server.address, graph).files()
    return load_file(server.output / file)["latent_tensor"]


@pytest.fixture(scope="module")
def first(server: Server) -> Tensor:
    found = latents(server)
    assert found.isfinite().all()
    return found


def test_another_server_gives_the_same_bits(first: Tensor, tmp_path: Path) -> None:
    with Server(COMFYUI, tmp_path, tmp_path / "output", tmp_path / "log") as other:
        assert latents(other).equal(first)


def test_other_passes_differ_by_rounding(server: Server, first: Tensor) -> None:
    assert relative_error(latents(server, frames_per_pass=1), first) < 1e-5


def test_faiss_and_torch_give_the_same(server: Server, first: Tensor) -> None:
    for backend in ("faiss", "torch"):
        assert relative_error(latents(server, backend=backend), first) < 1e-5
