"""A custom node of ComfyUI that is none: connects this host to others that share a clip with it.

TOKENFLOW_SHARD says how: JSON with Ray's address, its namespace, the name of the board, this host's rank and how many hosts there are.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
import torch
from comfy import model_management

ROOT = Path(__file__).resolve().parents[2]
NODE_CLASS_MAPPINGS: dict[str, Any] = {}


def pack(module: str) -> ModuleType:
    """A module of the pack as ComfyUI has loaded it, under a name of its own making."""
    for loaded in list(sys.modules.values()):
        file = getattr(loaded, "__file__", None)
        if file and Path(file).resolve() == ROOT / module:
            return loaded
    raise RuntimeError(f"the pack in {ROOT} is not loaded: its folder in custom_nodes has to come before this one")


def connect() -> None:
    sys.path.insert(0, str(ROOT))
    from cluster.shards import INTERRUPTED, OUT_OF_MEMORY, RayShards

    place = json.loads(os.environ["TOKENFLOW_SHARD"])
    ray.init(address=place["address"], namespace=place["namespace"], configure_logging=False, log_to_driver=False)
    errors = {OUT_OF_MEMORY: model_management.OOM_EXCEPTION, INTERRUPTED: model_management.InterruptProcessingException}
    check = model_management.throw_exception_if_processing_interrupted
    device = model_management.get_torch_device()
    board = ray.get_actor(place["board"])
    pack("host/shards.py").connect(RayShards(place["rank"], place["count"], board, torch.device(device), check, errors))


if "TOKENFLOW_SHARD" in os.environ:
    connect()
