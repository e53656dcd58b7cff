"""The quickstart workflow as a user runs it: the saved file, a real server,
the embedded model and clip.
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
ONCE_PER_CLIP = {
    "TokenFlowInvertVideo",
    "TokenFlowExtractFeatures",
    "TokenFlowBuildCorrespondences",
}


@pytest.fixture(scope="module")
def prompt(server: Any) -> dict[str, Any]:
    return to_prompt(
        json.loads((ROOT / "workflows" / "quickstart.json").read_text()), server.get("/object_info")
    )


def of_type(prompt: dict[str, Any], kind: str) -> list[str]:
    return [node for node, entry in prompt.items() if entry["class_type"] == kind]


def test_the_quickstart_edits_the_clip_and_a_second_prompt_only_samples(
    server: Any, queue: Callable[..., Any], prompt: dict[str, Any]
) -> None:
    result = queue(prompt)

    (metrics,) = of_type(prompt, "TokenFlowMetrics")
    lines = result.texts()[metrics][0].splitlines()
    errors = {
        name: float(error)
        for line in lines
        for name, error in re.findall(r"^(.+?) +warp error +([\d.]+)e-3", line)
    }
    floor = errors["reconstruction"]
    assert errors["source"] < errors["TokenFlow"] < errors["frame by frame"]
    assert errors["TokenFlow"] - floor <= 0.6 * (errors["frame by frame"] - floor)

    files = [server.output / name for name in result.files()]
    videos = [file for file in files if file.suffix == ".mp4"]
    assert len(videos) == 3
    for video in videos:
        with av.open(str(video)) as opened:
            assert sum(1 for _ in opened.decode(video=0)) == 24
    assert any(file.name.startswith("strip") for file in files)

    (sampler,) = (
        node
        for node in of_type(prompt, "TokenFlowSampler")
        if prompt[node]["inputs"]["consistency"] == "tokenflow"
    )
    source, _ = prompt[sampler]["inputs"]["positive"]
    changed = json.loads(json.dumps(prompt))
    changed[source]["inputs"]["text"] = changed[source]["inputs"]["text"].replace("gold", "marble")
    assert changed[source] != prompt[source]
    kept = needed(changed, "Save the TokenFlow edit")
    again = queue(kept)
    ran = {entry["class_type"] for node, entry in kept.items() if node not in again.cached}
    assert "TokenFlowSampler" in ran
    assert not ran & ONCE_PER_CLIP


def needed(prompt: dict[str, Any], title: str) -> dict[str, Any]:
    """The part of a prompt that one output node needs."""
    waiting = [node for node, entry in prompt.items() if entry["_meta"]["title"] == title]
    found: dict[str, Any] = {}
    while waiting:
        node = waiting.pop()
        found[node] = prompt[node]
        waiting += [
            value[0] for value in prompt[node]["inputs"].values() if isinstance(value, list)
        ]
    return found
