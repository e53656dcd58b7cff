"""A workflow that edits a clip of three frames in two steps, as an API prompt,
with clips and tables for it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

CLIP = "tokenflow_star.mp4"
FRAMES, SIDE = 3, 32


def node(kind: str, **inputs: Any) -> Any:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": f"The {kind}"}}


def prompt() -> dict[str, Any]:
    """The edit, its latents saved."""
    schedule = {
        "cfg": 1.0,
        "steps": 2,
        "scheduler": "normal",
        "refinement": "none",
        "iterations": 0,
        "depth": 1.0,
    }
    kept = {"layers": "all", "steps": "every", "every": 1, "noise_level": 0.2, "storage": "memory"}
    matched = {
        "keyframe_interval": 2,
        "intervals": "even",
        "keyframes": "fixed",
        "seed": 0,
        "backend": "torch",
        "search_window": 0,
    }
    sampled = {
        "cfg": 4.0,
        "sampler_name": "euler",
        "seed": 0,
        "start": 1.0,
        "consistency": "tokenflow",
    }
    return {
        "demo": node("TokenFlowLoadDemoModel"),
        "source": node("CLIPTextEncode", clip=["demo", 1], text="a red ball on grass"),
        "target": node("CLIPTextEncode", clip=["demo", 1], text="a gold ball on grass"),
        "video": node("LoadVideo", file=CLIP),
        "parts": node("GetVideoComponents", video=["video", 0]),
        "encoded": node("VAEEncode", pixels=["parts", 0], vae=["demo", 2]),
        "invert": node(
            "TokenFlowInvertVideo",
            model=["demo", 0],
            latents=["encoded", 0],
            positive=["source", 0],
            **schedule,
        ),
        "extract": node(
            "TokenFlowExtractFeatures", model=["demo", 0], inversion=["invert", 0], **kept
        ),
        "build": node("TokenFlowBuildCorrespondences", features=["extract", 0], **matched),
        "edit": node(
            "TokenFlowSampler",
            model=["demo", 0],
            correspondences=["build", 0],
            positive=["target", 0],
            negative=["source", 0],
            **sampled,
        ),
        "keep": node("SaveLatent", samples=["edit", 0], filename_prefix="edits/edited"),
    }


def keyframes_prompt() -> dict[str, Any]:
    """The edit from keyframes, its latents and the carried clip saved."""
    made = prompt()
    made["picked"] = node(
        "TokenFlowPickKeyframes",
        frames=["parts", 0],
        choice="every n-th",
        every=FRAMES,
        most=1,
        numbers="0",
    )
    made["carry"] = node(
        "TokenFlowCarryKeyframes",
        frames=["parts", 0],
        keyframes=["picked", 0],
        numbers=["picked", 1],
        vae=["demo", 2],
    )
    made["edit"]["inputs"]["keyframes"] = ["carry", 0]
    made["show"] = node("SaveImage", images=["carry", 1], filename_prefix="clip/frame")
    return made


def write_picture(path: Path, level: int) -> Path:
    """A grey picture of the clips' size."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).save(path)
    return path


def write_clip(path: Path, level: int, frames: int = FRAMES) -> Path:
    """A grey clip that gets lighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for frame in range(frames):
            picture = np.full((SIDE, SIDE, 3), level + 10 * frame, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A CSV with the columns of all rows."""
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path
