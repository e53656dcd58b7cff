"""A row's edited keyframes: a folder of pictures in the place of what leads to Carry Keyframes."""

from __future__ import annotations

import re
from pathlib import Path

from launch.comfyui.workflow import Prompt, PromptNode
from launch.graphs.graph import CARRY, label, of_types

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def carrying(prompt: Prompt) -> str:
    """Finds the node that takes edited keyframes.

    Args:
        prompt: The API prompt.

    Returns:
        The node's id.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found = of_types(prompt, (CARRY,))
    if len(found) != 1:
        several = ", ".join(label(prompt, node) for node in found)
        raise ValueError(
            f"{len(found)} nodes to set, {several}" if found else "no Carry Keyframes in it"
        )
    return found[0]


def pictures_of(folder: Path) -> dict[int, Path]:
    """Lists the pictures of a folder by the frame's number at the end of their names.

    Args:
        folder: With a picture per keyframe, such as `012.png` or `wolf_12.jpg`.

    Returns:
        {frame number, counted from 0: file}, ascending.

    Raises:
        ValueError: If it is no folder, has no picture, or a name says no number or one that
            another says.
    """
    if not folder.is_dir():
        raise ValueError(f"takes a folder of pictures, and there is none at {folder}")
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            continue
        digits = re.search(r"(\d{1,9})\D*$", file.stem)
        if digits is None:
            raise ValueError(f"takes pictures named by their frames' numbers, not {file.name}")
        number = int(digits[1])
        if number in found:
            raise ValueError(f"has frame {number} twice, {found[number].name} and {file.name}")
        found[number] = file
    if not found:
        raise ValueError(f"takes a folder of pictures, and {folder} has none")
    return dict(sorted(found.items()))


def take_pictures(prompt: Prompt, node: str, files: dict[int, str]) -> None:
    """Has Carry Keyframes take pictures from files.

    Args:
        prompt: The API prompt; nodes are added to it.
        node: Carry Keyframes' id.
        files: {frame number: name in the input folder}, ascending.
    """
    batch = ""
    for number, name in files.items():
        loader = f"{node} keyframe {number}"
        prompt[loader] = _node("LoadImage", f"Keyframe {number}", image=name)
        if batch:
            joined = f"{node} keyframes to {number}"
            both = {"image1": [batch, 0], "image2": [loader, 0]}
            prompt[joined] = _node("ImageBatch", f"Keyframes to {number}", **both)
            loader = joined
        batch = loader
    taken = {"keyframes": [batch, 0], "numbers": ", ".join(map(str, files))}
    prompt[node]["inputs"] = prompt[node]["inputs"] | taken


def _node(kind: str, title: str, **inputs: object) -> PromptNode:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
