"""Which run checkpoints belong to: a digest of everything that its result depends on.

The graph above the node says what was asked for, and with what: nodes of other packs, LoRA and
ControlNet are told apart by their inputs and by size and time of their files. What comes in as
tensors is digested itself.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import comfyui_version
import folder_paths
import torch
from torch import Tensor

from ..validation.fingerprint import model_fingerprint

FORMAT = 1
PACK = Path(__file__).resolve().parents[2] / "pyproject.toml"


def run_key(model: Any, graph: Mapping[str, Any] | None, node_id: str | None, *parts: Any) -> str:
    """Makes the digest of a run.

    Args:
        model: The user's ModelPatcher.
        graph: The prompt that the host runs, node by node; None where there is none.
        node_id: The running node's id in it.
        *parts: What else the result depends on: tensors, plain values, lists and dictionaries of
            them. Of other objects the type counts, the rest of them is the graph's.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    versions = (FORMAT, PACK.read_bytes() if PACK.is_file() else b"", torch.__version__)
    device, kind = str(model.load_device), str(model.model_dtype())
    above = nodes_above(graph or {}, node_id)
    for part in (
        versions,
        comfyui_version.__version__,
        device,
        kind,
        model_fingerprint(model),
        above,
        parts,
    ):
        _feed(digest, part)
    return digest.hexdigest()


def nodes_above(graph: Mapping[str, Any], node_id: str | None) -> Any:
    """Tells a node and all that leads to it from others, whatever their ids.

    Args:
        graph: A prompt, node by node.
        node_id: The node's id. One that is not in the prompt, as of nodes that others make while
            they run, has all of it.

    Returns:
        Something to compare.
    """
    if node_id is None or node_id not in graph:
        return [_described(graph, name, {}) for name in sorted(graph)]
    return _described(graph, node_id, {})


def _described(graph: Mapping[str, Any], name: str, known: dict[str, str]) -> str:
    """A digest of a node's class and inputs, and of the nodes before it."""
    if name not in known:
        digest = hashlib.sha256(str(graph[name].get("class_type")).encode())
        for socket, value in sorted(graph[name].get("inputs", {}).items()):
            # As the host tells links.
            pair = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
            linked = pair and value[0] in graph
            what = [_described(graph, value[0], known), value[1]] if linked else value
            _feed(digest, [socket, what, *_files(value)])
        known[name] = digest.hexdigest()
    return known[name]


def _files(value: Any) -> Iterator[tuple[int, int]]:
    """What tells the files that a widget's text may name from others of that name."""
    if not isinstance(value, str):
        return
    name, folder = folder_paths.annotated_filepath(value)
    places = [os.path.join(folder or folder_paths.get_input_directory(), name)]
    places += [
        found
        for kind in sorted(folder_paths.folder_names_and_paths)
        if (found := folder_paths.get_full_path(kind, value)) is not None
    ]
    for path in places:
        if os.path.isfile(path):
            known = os.stat(path)
            yield known.st_size, known.st_mtime_ns


def _feed(digest: Any, value: Any) -> None:
    """Adds a value to a digest so that no two different ones give the same bytes."""
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().contiguous()
        digest.update(f"{numbers.dtype}{tuple(numbers.shape)}".encode())
        digest.update(numbers.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, Mapping):
        _feed(digest, sorted((repr(key), item) for key, item in value.items()))
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        told = f"{type(value).__name__}:{value!r}".encode("utf-8", "backslashreplace")
        digest.update(f"{len(told)}:".encode() + told)
    else:
        digest.update(f"<{type(value).__module__}.{type(value).__qualname__}>".encode())
