"""The quickstart workflow as a user runs it: the saved file, a real server,
the embedded model and clip, fewer frames in fewer steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from launch.comfyui.workflow import to_prompt

ROOT = Path(__file__).resolve().parents[3]
FILES_FRAMES = 10  # few enough for a first look
FRAMES = 8  # with two keyframes
STEPS = 8  # half of what the file has
ONCE_PER_CLIP = {
    "TokenFlowInvertVideo",
    "TokenFlowExtractFeatures",
    "TokenFlowBuildCorrespondences",
}


@pytest.fixture(scope="module")
def prompt(server: Any) -> dict[str, Any]:
    found: dict[str, Any] = to_prompt(
        json.loads((ROOT / "workflows" / "quickstart.json").read_text()), server.get("/object_info")
    )
    (inversion,) = of_type(found, "TokenFlowInvertVideo")
    found[inversion]["inputs"]["steps"] = STEPS
    (cut,) = of_type(found, "ImageFromBatch")
    assert found[cut]["inputs"]["length"] == FILES_FRAMES
    found[cut]["inputs"]["length"] = FRAMES
    return found


def of_type(prompt: dict[str, Any], kind: str) -> list[str]:
    return [node for node, entry in prompt.items() if entry["class_type"] == kind]


def beside_the_baseline(prompt: dict[str, Any]) -> dict[str, Any]:
    """The quickstart with the same edit frame by frame, both measured."""
    (sampler,), (edit,) = of_type(prompt, "TokenFlowSampler"), of_type(prompt, "VAEDecode")
    (scaled,), (encoded,) = of_type(prompt, "ImageScale"), of_type(prompt, "VAEEncode")

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}

    given = prompt[sampler]["inputs"] | {"consistency": "per frame"}
    vae = prompt[edit]["inputs"]["vae"]
    clips = {"source": [scaled, 0], "edited": ["decoded", 0], "reference": [edit, 0]}
    names = "frame by frame, TokenFlow"
    return prompt | {
        "alone": node("TokenFlowSampler", **given),
        "decoded": node("VAEDecode", samples=["alone", 0], vae=vae),
        "floor": node("VAEDecode", samples=[encoded, 0], vae=vae),
        "measured": node(
            "TokenFlowMetrics", **clips, names=names, reconstruction=["floor", 0], flow="DIS"
        ),
        "shown": node("PreviewAny", source=["measured", 0]),
    }


def test_the_quickstart_edits_the_clip_and_a_second_prompt_only_samples(
    server: Any, queue: Callable[..., Any], prompt: dict[str, Any]
) -> None:
    result = queue(beside_the_baseline(prompt))

    lines = result.texts()["measured"][0].splitlines()
    errors = {
        name: float(error)
        for line in lines
        for name, error in re.findall(r"^(.+?) +warp error +([\d.]+)e-3", line)
    }
    floor = errors["reconstruction"]
    assert errors["source"] < errors["TokenFlow"] < errors["frame by frame"]
    assert errors["TokenFlow"] - floor <= 0.75 * (errors["frame by frame"] - floor)

    (video,) = (server.output / name for name in result.files())
    with av.open(str(video)) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == FRAMES

    (sampler,) = of_type(prompt, "TokenFlowSampler")
    source, _ = prompt[sampler]["inputs"]["positive"]
    changed = json.loads(json.dumps(prompt))
    changed[source]["inputs"]["text"] = changed[source]["inputs"]["text"].replace("gold", "marble")
    assert changed[source] != prompt[source]
    changed[sampler]["inputs"]["start"] = 0.2  # its last steps: what runs at all is the question
    again = queue(changed)
    ran = {entry["class_type"] for node, entry in changed.items() if node not in again.cached}
    assert "TokenFlowSampler" in ran
    assert not ran & ONCE_PER_CLIP
