"""The subgraphs that the pack offers, put between a loader and a saver on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import av
import pytest

from launch.comfyui.workflow import to_prompt

from .workflows import FRAMES, ROOT, shown


def blueprint(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A blueprint, which searches by torch, and the node that stands for it."""
    saved = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text())
    (standing,) = saved["nodes"]
    (matching,) = (
        node
        for node in saved["definitions"]["subgraphs"][0]["nodes"]
        if node["type"] == "TokenFlowBuildCorrespondences"
    )
    matching["widgets_values"][3] = "torch"
    return saved, standing


@pytest.mark.parametrize("masked", [False, True])
def test_the_blueprint_edits_a_clip(server: Any, queue: Callable[..., Any], masked: bool) -> None:
    """Between a loader and a saver, as users put it, and with a mask."""
    saved, standing = blueprint("Edit a video (TokenFlow)")
    values = ["a wood star on grass", "an ice star on grass", 0.5, 5.0, 4, FRAMES, 64, 64]
    standing |= {"id": 5, "widgets_values": values}
    for slot, link in zip(standing["inputs"], (1, 2, 3, 4), strict=False):
        slot["link"] = link
    saved["nodes"] += [
        {"id": 6, "type": "LoadVideo", "widgets_values": ["tokenflow_star.mp4"]},
        {"id": 7, "type": "TokenFlowLoadDemoModel"},
        {
            "id": 8,
            "type": "SaveVideo",
            "widgets_values": ["blueprint", "auto", "auto"],
            "inputs": [{"name": "video", "type": "VIDEO", "link": 5}],
        },
    ]
    saved["links"] = [
        [1, 6, 0, 5, 0, "VIDEO"],
        *([2 + i, 7, i, 5, 1 + i, kind] for i, kind in enumerate(("MODEL", "CLIP", "VAE"))),
        [5, 5, 0, 8, 0, "VIDEO"],
    ]
    if masked:
        (slot,) = (i for i, one in enumerate(standing["inputs"]) if one["type"] == "MASK")
        standing["inputs"][slot]["link"] = 6
        saved["nodes"].append({"id": 9, "type": "SolidMask", "widgets_values": [0.0, 64, 64]})
        saved["links"].append([6, 9, 0, 5, slot, "MASK"])
    prompt = to_prompt(saved, server.get("/object_info"))
    (sampler,) = (one for one in prompt.values() if one["class_type"] == "TokenFlowSampler")
    assert ("mask" in sampler["inputs"]) == masked
    result = queue(prompt)
    (video,) = (server.output / name for name in result.files())
    with av.open(str(video)) as written:
        edited = [frame.to_ndarray(format="rgb24") for frame in written.decode(video=0)]
    with av.open(str(server.input / "tokenflow_star.mp4")) as source:
        first = next(source.decode(video=0)).reformat(64, 64).to_ndarray(format="rgb24")
    assert len(edited) == FRAMES
    assert edited[0].shape == first.shape
    # A mask of nothing leaves the wood as it is.
    changed = float(abs(edited[0][24:40, 24:40].astype(float) - first[24:40, 24:40]).mean())
    assert (changed < 8) == masked  # 13 and 4 of 255


def test_the_blueprint_carries_keyframes(server: Any, queue: Callable[..., Any]) -> None:
    saved, standing = blueprint("Edit from keyframes (TokenFlow)")
    values = ["1", "a wood star on grass", "an ice star on grass", 0.5, 5.0, 3, 0.0]
    standing |= {"id": 5, "widgets_values": values}
    for slot, link in zip(standing["inputs"], (4, 6, 7, 8, 9), strict=False):
        slot["link"] = link

    def node(id: int, kind: str, values: list[Any], **links: int) -> dict[str, Any]:
        slots = [{"name": name, "type": "*", "link": link} for name, link in links.items()]
        return {"id": id, "type": kind, "widgets_values": values, "inputs": slots}

    saved["nodes"] += [
        node(6, "LoadVideo", ["tokenflow_star.mp4"]),
        node(7, "GetVideoComponents", [], video=1),
        node(8, "ImageFromBatch", [0, FRAMES], image=2),
        node(9, "ImageScale", ["lanczos", 64, 64, "center"], image=3),
        node(10, "ImageFromBatch", [1, 1], image=10),
        node(11, "ImageInvert", [], image=5),
        {"id": 12, "type": "TokenFlowLoadDemoModel"},
        node(13, "PreviewImage", [], images=11),
        node(14, "PreviewImage", [], images=12),
        node(15, "MaskPreview", [], mask=13),
    ]
    saved["links"] = [
        [1, 6, 0, 7, 0, "VIDEO"],
        [2, 7, 0, 8, 0, "IMAGE"],
        [3, 8, 0, 9, 0, "IMAGE"],
        [4, 9, 0, 5, 0, "IMAGE"],
        [5, 10, 0, 11, 0, "IMAGE"],
        [6, 11, 0, 5, 1, "IMAGE"],
        *([7 + i, 12, i, 5, 2 + i, kind] for i, kind in enumerate(("MODEL", "CLIP", "VAE"))),
        [10, 9, 0, 10, 0, "IMAGE"],
        [11, 9, 0, 13, 0, "IMAGE"],
        [12, 5, 0, 14, 0, "IMAGE"],
        [13, 5, 1, 15, 0, "MASK"],
    ]
    outputs = queue(to_prompt(saved, server.get("/object_info"))).outputs
    source, clip, hidden = (shown(server, outputs[node]) for node in ("13", "14", "15"))
    assert len(source) == len(clip) == len(hidden) == FRAMES
    seen = (hidden[:, :1] == 0).expand_as(clip)
    assert seen.float().mean() > 0.9
    assert (clip - (1 - source))[seen].abs().mean() < 0.03
    assert (clip[1] - (1 - source[1])).abs().max() < 1 / 128
