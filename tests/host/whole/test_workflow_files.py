"""The saved files of the workflows that the pack offers: what they connect, say and name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomllib
from PIL import Image
from tokenflow_pack.nodes.looking.clips import EDITS, called

from launch.comfyui.workflow import Prompt, to_prompt

from .workflows import ROOT, TRANSFORMERS

FILES = sorted((ROOT / "workflows").glob("*.json"))
SIZES = {"flux": 768, "sd35": 1024, "sdxl": 1024}


def opened(file: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """A saved workflow, and its nodes by number."""
    saved: dict[str, Any] = json.loads(file.read_text())
    return saved, {node["id"]: node for node in saved["nodes"]}


def test_every_video_that_has_all_frames_has_the_clips_speed_and_sound() -> None:
    for file in FILES:
        saved, nodes = opened(file)
        links = {link: (nodes[origin]["type"], slot) for link, origin, slot, *_ in saved["links"]}
        (components,) = (node for node in nodes.values() if node["type"] == "GetVideoComponents")
        audio, fps = (
            next(i for i, out in enumerate(components["outputs"]) if out["name"] == name)
            for name in ("audio", "fps")
        )
        for node in nodes.values():
            if node["type"] == "CreateVideo":
                given = {slot["name"]: links.get(slot["link"]) for slot in node["inputs"]}
                assert given["fps"] == ("GetVideoComponents", fps)
                shows_some = file.stem == "reconstruction_check"  # spread over the clip
                assert given["audio"] == (None if shows_some else ("GetVideoComponents", audio))


def test_every_clip_is_cut_to_its_first_frames_and_scaled() -> None:
    for file in FILES:
        saved, nodes = opened(file)
        fed = {
            (nodes[origin]["type"], nodes[target]["type"])
            for _, origin, _, target, _, kind in saved["links"]
            if kind == "IMAGE"
        }
        assert {target for origin, target in fed if origin == "GetVideoComponents"} == {
            "ImageFromBatch"
        }
        assert {target for origin, target in fed if origin == "ImageFromBatch"} == {"ImageScale"}
        ours = any(node["type"] == "TokenFlowLoadDemoModel" for node in nodes.values())
        (scale,) = (
            node["widgets_values"] for node in nodes.values() if node["type"] == "ImageScale"
        )
        assert scale == [
            "lanczos",
            *[128 if ours else SIZES.get(file.stem, 512)] * 2,
            "center",
        ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_offered_with_its_picture_and_fits_the_nodes(server: Any, file: Path) -> None:
    assert any(file.stem in names for names in server.get("/workflow_templates").values())
    with Image.open(file.with_suffix(".jpg")) as picture:
        picture.load()
        assert picture.format == "JPEG"

    saved, known = json.loads(file.read_text()), server.get("/object_info")
    assert to_prompt(saved, known)
    for node in saved["nodes"]:
        given = {slot["name"] for slot in node["inputs"]}
        groups = known[node["type"]]["input"].values() if node["type"] in known else [{}]
        assert given <= {name for group in groups if isinstance(group, dict) for name in group}, (
            node["type"]
        )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_prompts_and_names_are_those_of_the_clips(server: Any, file: Path) -> None:
    """Prompts say what the embedded clip shows; a clip has one name, on whatever node; decibels are
    told in pictures.
    """
    prompt = to_prompt(json.loads(file.read_text()), server.get("/object_info"))
    names: dict[Any, str] = {}
    for entry in prompt.values():
        inputs = entry["inputs"]
        if entry["class_type"] == "TokenFlowInvertVideo":
            assert text_of(prompt, inputs["positive"]) == "a wood star on grass"
            assert inputs["vae"] == prompt[inputs["latents"][0]]["inputs"]["vae"]
        if entry["class_type"] in ("TokenFlowMetrics", "TokenFlowCompareClips"):
            given = (
                inputs["names"]
                if isinstance(inputs["names"], str)
                else prompt[inputs["names"][0]]["inputs"]["value"]
            )
            for name, clip in called(
                "", {socket: inputs[socket] for socket in EDITS if socket in inputs}, given
            ).items():
                assert name not in EDITS.values()
                assert names.setdefault(tuple(clip), name) == name
        if entry["class_type"] == "TokenFlowSampler":
            assert re.fullmatch("an? [a-z]+ star on [a-z]+", text_of(prompt, inputs["positive"]))


def text_of(prompt: Prompt, link: Any) -> str:
    """What a link to a prompt says, through ControlNets and guidance."""
    inputs = prompt[link[0]]["inputs"]
    if "text" in inputs:
        return str(inputs["text"])
    return text_of(prompt, inputs["positive"] if "positive" in inputs else inputs["conditioning"])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_flow_models_are_inverted_and_guided_as_suits_them(server: Any, name: str) -> None:
    saved = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    prompt = to_prompt(saved, server.get("/object_info"))

    def only(kind: str) -> Any:
        (entry,) = (entry["inputs"] for entry in prompt.values() if entry["class_type"] == kind)
        return entry

    source, edit = only("TokenFlowInvertVideo"), only("TokenFlowSampler")
    assert (source["steps"], source["scheduler"], source["cfg"]) == (28, "simple", 1)
    guidance = [prompt[one["positive"][0]]["inputs"].get("guidance") for one in (source, edit)]
    if name == "flux":
        assert (guidance, edit["cfg"]) == ([1, 3.5], 1)
        assert prompt[edit["negative"][0]]["class_type"] == "ConditioningZeroOut"
    else:
        assert guidance == [None, None]
        assert 3 <= edit["cfg"] <= 4.5
    if name == "transformer":
        assert only("TokenFlowLoadDemoModel") == {"model": "transformer"}


def test_every_loader_names_the_files_to_get_and_where_they_belong() -> None:
    folders = {
        "CheckpointLoaderSimple": "checkpoints",
        "ControlNetLoader": "controlnet",
        "UNETLoader": "diffusion_models",
        "CLIPLoader": "text_encoders",
        "DualCLIPLoader": "text_encoders",
        "VAELoader": "vae",
    }
    for file in FILES:
        for node in opened(file)[1].values():
            if node["type"] in folders:
                models = node["properties"]["models"]
                assert {model["directory"] for model in models} == {folders[node["type"]]}
                names = [model["name"] for model in models]
                assert node["widgets_values"][: len(names)] == names
                assert [name for name in node["widgets_values"] if "." in name] == names
                assert all(model["url"].endswith(f"/{model['name']}") for model in models)


def test_every_node_says_which_pack_and_version_it_is_of() -> None:
    """So that the page offers the pack where a node is missing."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for file in FILES:
        for node in opened(file)[1].values():
            if node["type"] != "MarkdownNote":
                ours = node["type"].startswith("TokenFlow")
                assert node["properties"]["cnr_id"] == ("tokenflow" if ours else "comfy-core")
                assert not ours or node["properties"]["ver"] == version
