"""Which graphs are the same: those that compute the same, wherever they stand and lead to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from tokenflow_pack.host.checkpoints.key import run_key

from ..small import tiny_model

Graph = dict[str, dict[str, Any]]


def graph() -> Graph:
    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("UNETLoader", unet_name="model.safetensors", weight_dtype="default"),
        "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name="lora.bin", strength_model=0.5),
        "3": node("LoadVideo", file="clip.mp4"),
        "4": node("TokenFlowInvertVideo", model=["2", 0], latents=["3", 0], steps=50, size=[1, 2]),
        "5": node("SaveLatent", samples=["4", 1], filename_prefix="kept"),
    }


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    folders = ([str(tmp_path)], {".bin"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", folders)
    for name in ("clip.mp4", "lora.bin"):
        (tmp_path / name).write_bytes(b"before")
        os.utime(tmp_path / name, (1, 1))


def key(of: Graph, node: str = "4", *parts: Any) -> str:
    return run_key(tiny_model(), of, node, *parts)


def setting(node: str, socket: str, value: Any) -> Callable[[Graph], None]:
    return lambda given: given[node]["inputs"].update({socket: value})


def file(name: str) -> Callable[[Graph], None]:
    return lambda _: Path(folder_paths.get_input_directory(), name).write_bytes(b"another")


OTHER = {
    "a setting": setting("4", "steps", 49),
    "a setting of another type": setting("4", "steps", 50.0),
    "a list": setting("4", "size", [1, 3]),
    "a node before": setting("2", "strength_model", 0.6),
    "another output": setting("4", "latents", ["3", 1]),
    "another node": lambda given: given["2"].update(class_type="OtherLora"),
    "a node left out": setting("4", "model", ["1", 0]),
    "the clip's file": file("clip.mp4"),
    "a model's file": file("lora.bin"),
}
SAME = {
    "nothing": lambda given: None,
    "nodes behind": setting("5", "filename_prefix", "other"),
    "titles": lambda given: given["4"].update(_meta={"title": "mine"}),
    "a file that is not there": lambda given: None,
}


@pytest.mark.parametrize("name", OTHER)
def test_what_computes_something_else_has_another_key(name: str) -> None:
    given = graph()
    before = key(given)
    OTHER[name](given)
    assert key(given) != before


@pytest.mark.parametrize("name", SAME)
def test_what_computes_the_same_has_the_same_key(name: str) -> None:
    given = graph()
    before = key(given)
    SAME[name](given)
    assert key(given) == before


def test_ids_do_not_count() -> None:
    renamed = {
        f"9{name}": {
            "class_type": node["class_type"],
            "inputs": {
                socket: [f"9{value[0]}", value[1]]
                if isinstance(value, list) and value[0] in graph()
                else value
                for socket, value in node["inputs"].items()
            },
        }
        for name, node in graph().items()
    }
    assert key(renamed, "94") == key(graph())


def test_of_a_node_that_is_in_no_prompt_the_whole_prompt_counts() -> None:
    given = graph()
    before = key(given, "4.0.1")
    setting("5", "filename_prefix", "other")(given)
    assert key(given, "4.0.1") != before


PARTS = [
    (torch.zeros(2, 3),),
    (torch.zeros(3, 2),),
    (torch.zeros(2, 3, dtype=torch.float16),),
    (torch.ones(2, 3),),
    ([torch.zeros(2), torch.zeros(2)],),
    ([torch.zeros(2)], torch.zeros(2)),
    ({"a": 1, "b": 2},),
    ({"a": 2, "b": 1},),
    ("ab", "c"),
    ("a", "bc"),
    (None,),
    (0,),
    (False,),
    ("",),
    (object(),),
]


def test_no_two_values_are_the_same() -> None:
    assert len({key({}, "4", *parts) for parts in PARTS}) == len(PARTS)
    assert key({}, "4", {"a": 1, "b": 2}) == key({}, "4", {"b": 2, "a": 1})
    assert key({}, "4", object()) == key({}, "4", object())


def test_another_model_or_type_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_key(tiny_model(), None, None)
    assert run_key(tiny_model(1), None, None) != before
    monkeypatch.setattr(tiny_model(), "model_dtype", lambda: torch.float16)
    assert run_key(tiny_model(), None, None) != before
