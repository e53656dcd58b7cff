"""How many frames one pass takes, by the host's memory estimate; where large tensors are kept."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy import model_management
from torch import Tensor

from .validation.errors import NodeError

# A pass is also the unit of interrupts: beyond this many frames it only gets longer, not faster.
MOST_FRAMES = 16
CUDA_OUT_OF_MEMORY = 2
# How much is written at once where a file's blocks cannot be reserved.
BLOCK_BYTES = 16 << 20


def frames_at_once(model: Any, shape: Sequence[int], frames_per_pass: int = 0) -> int:
    """Returns how many frames a pass may take.

    The estimate counts cond and uncond, and half as much again, which the host wants free before it
    batches them. A pass takes all frames where self-attention is replaced throughout:
    Self-Attention Guidance takes what it saw in the last call for the whole batch.

    Args:
        model: The ModelPatcher.
        shape: The latents' (N, C, h, w).
        frames_per_pass: Frames that the user asks for, 0 for an estimate.

    Returns:
        1 to N.
    """
    if replaces_attention(model):
        return shape[0]
    if frames_per_pass > 0:
        return min(frames_per_pass, shape[0])
    one = model.model.memory_required([2, *shape[1:]]) * 1.5
    return max(1, min(int(room_of_a_pass(model) / one), MOST_FRAMES, shape[0]))


def room_of_a_pass(model: Any) -> float:
    """Returns how much memory a pass may take beside the model, in bytes.

    Newer hosts hold on a GPU what they have room for of a model's weights, and fetch the others
    as they are needed: what such a host can give is asked of it, which counts room for larger
    batches before room for weights.

    Args:
        model: The ModelPatcher.

    Returns:
        The room; below 0 where the model alone is too large.
    """
    device = model.load_device
    if model_management.is_device_cpu(device):
        return float(model_management.get_free_memory(device))
    if hasattr(model, "is_dynamic") and model.is_dynamic():
        return float(model.get_free_memory(device))
    # Everything else may be unloaded, the model itself may not.
    total = model_management.get_total_memory(device)
    return float(total - model.model_size() - model_management.extra_reserved_memory())


def is_oom(error: BaseException) -> bool:
    """Tells whether memory ran out.

    Newer hosts know several forms of such an error, older ones only OOM_EXCEPTION. A GPU that
    finds out after the call returned raises an error of its own kind, `torch.AcceleratorError`,
    which counts too.
    """
    newer = getattr(model_management, "is_oom", None)
    if newer is not None:
        return bool(newer(error))
    if isinstance(error, model_management.OOM_EXCEPTION):
        return True
    told_late = isinstance(error, getattr(torch, "AcceleratorError", RuntimeError))
    return told_late and (
        getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY
        or "out of memory" in str(error).lower()
    )


def replaces_attention(model: Any) -> bool:
    """Tells whether something takes the place of self-attention throughout."""
    return bool(model.model_options["transformer_options"].get("patches_replace", {}).get("attn1"))


def room(
    node: str,
    *shape: int,
    socket: str = "latents",
    what: str = "the path to noise",
    remedy: str = "Make room on that disk, or invert fewer frames or steps.",
) -> Tensor:
    """Makes an empty float32 tensor: in main memory or, where that would fill it, in a file.

    The file lies in the host's temp folder, and is removed with the tensor.

    Args:
        node: The node's name, for errors.
        *shape: The tensor's shape.
        socket: The input's name, for errors.
        what: What is kept in it, for errors.
        remedy: What else to do where the disk has no room.

    Returns:
        The tensor, its numbers not set.

    Raises:
        NodeError: If the disk has no room either.
    """
    size = math.prod(shape) * 4
    if fits_in_memory(size):
        return torch.empty(
            shape, dtype=torch.float32, device=model_management.intermediate_device()
        )
    folder = Path(folder_paths.get_temp_directory())
    file = folder / f"tokenflow-{uuid.uuid4().hex}.path"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _reserve(file, size)
        tensor = torch.from_file(
            str(file), shared=True, size=math.prod(shape), dtype=torch.float32
        ).reshape(shape)
    # RuntimeError is torch's, where the file cannot be mapped.
    except (OSError, RuntimeError) as error:
        _remove(file)
        found = (
            f"{what} takes {size / 2**30:.1f} GiB, more than main memory has, "
            f"and {folder} cannot hold it ({error})."
        )
        raise NodeError(node, socket, found, remedy) from error
    logging.info(
        "TokenFlow: %.1f GiB that would fill main memory are kept in %s.", size / 2**30, folder
    )
    weakref.finalize(tensor, _remove, file)
    return tensor


def _reserve(file: Path, size: int) -> None:
    """Makes a file of so many bytes with all its blocks.

    A mapped page that the disk has no room for would end the process.
    """
    with file.open("wb") as made:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(made.fileno(), 0, size)
            return
        for start in range(0, size, BLOCK_BYTES):
            made.write(bytes(min(BLOCK_BYTES, size - start)))


def _remove(file: Path) -> None:
    # Windows keeps what is still mapped; the host empties the folder when it starts.
    with contextlib.suppress(OSError):
        file.unlink()


def fits_in_memory(size: int) -> bool:
    """Tells whether `size` bytes take at most a quarter of the free main memory.

    The rest is for the models and the next node.
    """
    return size * 4 <= model_management.get_free_memory(torch.device("cpu"))
