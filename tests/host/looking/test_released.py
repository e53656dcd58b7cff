"""What workflows out there hold on to: ids of nodes, inputs and outputs of the last release.

`RELEASED=write` keeps the interface as it is now, to be run for a release.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenflow_pack.nodes as pack
from comfy_api.latest import io
from tokenflow_pack.nodes import RENAMED, TokenFlowExtension, tell_renamed

KEPT = Path(__file__).with_name("released.json")
# Choices that are the host's, or files.
LISTS = "scheduler", "sampler_name", "flow", "file"


def interface(nodes: list[type[io.ComfyNode]]) -> dict[str, Any]:
    """What saved workflows and prompts say of nodes, in the order in which they say it."""
    return {
        known.node_id: {
            "inputs": {
                one.id: {
                    "type": str(one.get_io_type()),
                    "may be left out": bool(one.optional)
                    or getattr(one, "default", None) is not None,
                    "choices": list(getattr(one, "options", None) or ())
                    if one.id not in LISTS
                    else [],
                }
                for one in known.inputs
            },
            "outputs": [str(one.get_io_type()) for one in known.outputs],
        }
        for known in (node.define_schema() for node in nodes)
    }


def breaks(old: Mapping[str, Any], new: Mapping[str, Any], renamed: Mapping[str, Any]) -> list[str]:
    """What saved workflows of the old interface would lose with the new one."""
    found = []
    for name, before in old.items():
        if name in renamed:
            continue
        if name not in new:
            found.append(f"{name} is gone")
            continue
        now = new[name]
        # Values of widgets are saved by their places: new inputs come last.
        if list(now["inputs"])[: len(before["inputs"])] != list(before["inputs"]):
            found.append(f"{name}: inputs {list(now['inputs'])}, were {list(before['inputs'])}")
            continue
        for key, given in before["inputs"].items():
            changed = now["inputs"][key]
            if not set(given["type"].split(",")) <= set(changed["type"].split(",")):
                found.append(f"{name}, {key}: {changed['type']}, was {given['type']}")
            if gone := set(given["choices"]) - set(changed["choices"]):
                found.append(f"{name}, {key}: without {', '.join(sorted(gone))}")
        more = set(now["inputs"]) - set(before["inputs"])
        found += [
            f"{name}, {key}: must be given, and old workflows do not"
            for key in sorted(more)
            if not now["inputs"][key]["may be left out"]
        ]
        if now["outputs"][: len(before["outputs"])] != before["outputs"]:
            found.append(f"{name}: outputs {now['outputs']}, were {before['outputs']}")
    return found


def now() -> dict[str, Any]:
    return interface(asyncio.run(TokenFlowExtension().get_node_list()))


def released() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    return kept


def test_workflows_of_the_last_release_stay_valid() -> None:
    if os.environ.get("RELEASED") == "write":
        KEPT.write_text(json.dumps(now(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert not breaks(released(), now(), RENAMED)
    assert {new["new_node_id"] for new in RENAMED.values()} <= set(now())


Change = Callable[[dict[str, Any]], object]
BREAKS: dict[str, Change] = {
    "TokenFlowSampler is gone": lambda nodes: nodes.pop("TokenFlowSampler"),
    "inputs .*, were": lambda nodes: nodes["TokenFlowSampler"]["inputs"].pop("cfg"),
    "TokenFlowSampler, cfg: INT, was FLOAT": lambda nodes: nodes["TokenFlowSampler"]["inputs"][
        "cfg"
    ].update(type="INT"),
    "TokenFlowSampler, frames: VIDEO, was IMAGE": lambda nodes: nodes["TokenFlowSampler"]["inputs"][
        "frames"
    ].update(type="VIDEO"),
    "consistency: without tokenflow": lambda nodes: nodes["TokenFlowSampler"]["inputs"][
        "consistency"
    ]["choices"].remove("tokenflow"),
    "more: must be given": lambda nodes: nodes["TokenFlowSampler"]["inputs"].update(
        more={"type": "INT", "may be left out": False, "choices": []}
    ),
    "outputs .*, were": lambda nodes: nodes["TokenFlowInvertVideo"]["outputs"].reverse(),
}


@pytest.mark.parametrize("found", BREAKS)
def test_a_break_is_found(found: str) -> None:
    changed = copy.deepcopy(released())
    BREAKS[found](changed)
    (told,) = breaks(released(), changed, {})
    assert re.search(found, told)
    assert not breaks(released(), changed, {"TokenFlowSampler": {}, "TokenFlowInvertVideo": {}})


@pytest.mark.skipif(not hasattr(io, "NodeReplace"), reason="this host replaces no nodes")
def test_renamed_nodes_are_told_to_hosts_that_replace_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import server
    from app.node_replace_manager import NodeReplaceManager

    class Server:
        node_replace_manager = NodeReplaceManager()

    monkeypatch.setattr(server.PromptServer, "instance", Server(), raising=False)
    mapping = [{"new_id": "cfg", "old_id": "guidance"}]
    renamed = {"new_node_id": "TokenFlowSampler", "input_mapping": mapping}
    monkeypatch.setattr(pack, "RENAMED", {"TokenFlowOld": renamed})
    asyncio.run(tell_renamed())
    (told,) = Server.node_replace_manager.as_dict()["TokenFlowOld"]
    assert told["new_node_id"] == "TokenFlowSampler"
    assert told["input_mapping"] == mapping
