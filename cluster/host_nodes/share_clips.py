"""Connects a worker's ComfyUI to others that share a clip with it, if TOKENFLOW_SHARD says so.

Loaded by that ComfyUI as a custom node. TOKENFLOW_SHARD is JSON: Ray's address and namespace, the
name of the board, this host's rank, and how many hosts there are.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
import torch
from comfy import model_management

NODE_CLASS_MAPPINGS: dict[str, Any] = {}


def pack(module: str) -> ModuleType:
    """Finds a module of the pack, which ComfyUI has loaded under a name of its own making."""
    for name, loaded in list(sys.modules.items()):
        if name.endswith(module) and hasattr(loaded, "connect") and hasattr(loaded, "ALONE"):
            return loaded
    raise RuntimeError(
        "TokenFlow is not among this ComfyUI's custom nodes, or too old to share a clip"
    )


def connect(place: dict[str, Any]) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from cluster.shares.shards import INTERRUPTED, OUT_OF_MEMORY, Failure, RayShards

    ray.init(
        address=place["address"],
        namespace=place["namespace"],
        configure_logging=False,
        log_to_driver=False,
    )
    shards = pack(".host.shards")
    is_oom = import_module(".memory", shards.__package__).is_oom
    interrupt = model_management.InterruptProcessingException
    errors = {
        OUT_OF_MEMORY: Failure(is_oom, model_management.OOM_EXCEPTION),
        INTERRUPTED: Failure(lambda error: isinstance(error, interrupt), interrupt),
    }
    check = model_management.throw_exception_if_processing_interrupted
    device = torch.device(model_management.get_torch_device())
    shards.connect(
        RayShards(
            place["rank"], place["count"], ray.get_actor(place["board"]), device, check, errors
        )
    )


if os.environ.get("TOKENFLOW_SHARD"):
    connect(json.loads(os.environ["TOKENFLOW_SHARD"]))
