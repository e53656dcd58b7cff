"""Saved workflows made small, and what they show and save on a real server.

Where a workflow asks for Stable Diffusion 1.5, the embedded model takes its place, which has that
layout; where it asks for SDXL a tiny model of SDXL's; where for a transformer the embedded one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from launch.comfyui.subgraphs import BYPASSED
from launch.comfyui.workflow import Prompt, to_prompt

ROOT = Path(__file__).resolve().parents[3]
FRAMES = 3
TRANSFORMERS = ["flux", "sd35", "transformer"]
# Loaders of one part of a model, and which output of Load Demo Model that part is.
PARTS = {"UNETLoader": 0, "CLIPLoader": 1, "DualCLIPLoader": 1, "VAELoader": 2}
SMALL: dict[str, dict[str, Any]] = {
    "ImageFromBatch": {"length": FRAMES},
    "TokenFlowInvertVideo": {"steps": 3},
    "TokenFlowBuildCorrespondences": {"keyframe_interval": 2, "backend": "torch"},
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "KSampler": {"steps": 2},
}


class Run:
    """A workflow that is run, changed and run again; what did not change the server keeps."""

    def __init__(
        self,
        server: Any,
        queue: Callable[..., Any],
        name: str,
        bypassed: tuple[str, ...] = (),
        muted: bool = True,
    ) -> None:
        self.server, self.queue = server, queue
        workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
        for node in workflow["nodes"]:
            if node["type"] in bypassed:
                node["mode"] = BYPASSED
            elif not muted:
                node["mode"] = 0
        self.prompt: Prompt = to_prompt(workflow, server.get("/object_info"))
        for entry in list(self.prompt.values()):
            entry["inputs"].update(SMALL.get(entry["class_type"], {}))
            if entry["class_type"] == "CheckpointLoaderSimple":
                self.replace_checkpoint(entry)
        self.replace_parts()
        for node in [*self.nodes("TokenFlowSampler"), *self.nodes("VAEEncode")]:
            inputs = {"samples": [node, 0], "filename_prefix": "latents/test"}
            self.prompt[f"latents of {node}"] = {
                "class_type": "SaveLatent",
                "inputs": inputs,
                "_meta": {"title": "Save Latent"},
            }

    def replace_checkpoint(self, loader: Any) -> None:
        """By a model that can be had, of the same layout, on smaller pictures."""
        self.make_smaller()
        name = loader["inputs"]["ckpt_name"]
        if "xl_" not in name:
            kind = {"model": "transformer"} if name.startswith("sd3") else {}
            loader.update({"class_type": "TokenFlowLoadDemoModel", "inputs": kind})
            return
        self.prompt["words"] = {
            "class_type": "TokenFlowLoadDemoModel",
            "inputs": {},
            "_meta": {"title": "Words"},
        }
        loader.update(
            {"class_type": "TinyCheckpoint", "inputs": {"layout": "SDXL", "clip": ["words", 1]}}
        )

    def replace_parts(self) -> None:
        """Model, text encoder and autoencoder in files of their own: by the embedded ones."""
        parts = {node: PARTS[kind] for kind in PARTS for node in self.nodes(kind)}
        if not parts:
            return
        self.make_smaller()
        for entry in self.prompt.values():
            for name, value in entry["inputs"].items():
                if isinstance(value, list) and value[0] in parts:
                    entry["inputs"][name] = ["model", parts[value[0]]]
        for node in parts:
            del self.prompt[node]
        self.prompt["model"] = {
            "class_type": "TokenFlowLoadDemoModel",
            "inputs": {"model": "transformer"},
            "_meta": {"title": "Model"},
        }

    def make_smaller(self) -> None:
        for node in self.nodes("ImageScale"):
            self.prompt[node]["inputs"].update({"width": 64, "height": 64})

    def __call__(self, **changes: dict[str, Any]) -> Run:
        """Runs it with other inputs of a type's nodes: `run(TokenFlowSampler={"start": 0.5})`."""
        for kind, inputs in changes.items():
            for node in self.nodes(kind):
                self.prompt[node]["inputs"].update(inputs)
        self.result = self.queue(self.prompt)
        return self

    def nodes(self, kind: str) -> list[str]:
        return [node for node, entry in self.prompt.items() if entry["class_type"] == kind]

    def latents(self, kind: str = "TokenFlowSampler") -> Tensor:
        """What the only node of a type gave, (N, C, h, w)."""
        (node,) = self.nodes(kind)
        return self.latents_of(node)

    def latents_of(self, node: str) -> Tensor:
        """What a node gave, (N, C, h, w)."""
        (saved,) = self.result.outputs[f"latents of {node}"]["latents"]
        found = load_file(self.server.output / saved["subfolder"] / saved["filename"])[
            "latent_tensor"
        ]
        assert len(found) == FRAMES
        assert torch.isfinite(found).all()
        return found

    def pictures(self, kind: str) -> Tensor:
        """What the only node of a type showed, (N, 3, H, W) in [0, 1]."""
        (node,) = self.nodes(kind)
        return shown(self.server, self.result.outputs[node])

    def check_videos(self) -> None:
        """Every Save Video node has saved all frames."""
        videos = [
            self.server.output / name for name in self.result.files() if name.endswith(".mp4")
        ]
        assert len(videos) == len(self.nodes("SaveVideo")) > 0
        for video in videos:
            with av.open(str(video)) as opened:
                assert sum(1 for _ in opened.decode(video=0)) == FRAMES


def shown(server: Any, output: Any) -> Tensor:
    """What a node showed, (N, 3, H, W) in [0, 1]."""
    files = [server.work / "temp" / one["filename"] for one in output["images"]]
    return torch.stack([pil_to_tensor(Image.open(file).convert("RGB")) / 255 for file in files])
