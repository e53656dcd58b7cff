"""Optical flow by name: DIS, which needs nothing, or RAFT.

RAFT's weights lie in the host's folder models/optical_flow. Hosts that have nodes for optical flow
themselves (2026) keep torchvision's RAFT in the same folder.
"""

from __future__ import annotations

import os

import comfy.utils
import folder_paths
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...tokenflow_ops.libraries import LibraryError, library
from ...tokenflow_ops.measuring.metrics import Flow, dis_flow
from ...tokenflow_ops.measuring.raft import load_raft, raft_flow, raft_memory
from ..validation.errors import NodeError, library_error

FOLDER = "optical_flow"
DIS = "DIS"
LONGEST_SHOWN = 100  # signs of a name in an error
# torchvision's default weights, under the names of its files: offered before they are there, so
# that the error can say what is missing.
RAFT_FILES = ("raft_large_C_T_SKHT_V2-ff5fadd5.pth", "raft_small_C_T_V2-01064c6d.pth")


def flow_choices() -> list[str]:
    """Lists DIS, torchvision's default files and whatever else lies in the folder."""
    _register()
    return list(dict.fromkeys([DIS, *RAFT_FILES, *folder_paths.get_filename_list(FOLDER)]))


def load_flow(node: str, socket: str, choice: str) -> Flow:
    """Loads the optical flow of a name.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        choice: One of `flow_choices`.

    Returns:
        The flow, which runs where the host wants it, one pair of frames at a time.

    Raises:
        NodeError: If the file is missing or holds anything but torchvision's weights of RAFT, or if
            the library that runs the flow is missing.
    """
    path = check_flow(node, socket, choice)
    if path is None:
        return dis_flow
    try:
        raft = load_raft(comfy.utils.load_torch_file(path, safe_load=True))
    except Exception as error:  # a foreign file makes the loaders raise anything
        remedy = f"Choose weights of raft_large or raft_small, or {DIS}."
        raise NodeError(
            node, socket, f"{path} does not hold torchvision's weights of RAFT.", remedy
        ) from error
    patcher = ModelPatcher(
        raft,
        load_device=model_management.get_torch_device(),
        offload_device=model_management.unet_offload_device(),
    )

    def flow(first: Tensor, second: Tensor) -> Tensor:
        model_management.load_models_gpu([patcher], memory_required=raft_memory(*first.shape[1:]))
        return raft_flow(
            patcher.model, first.to(patcher.load_device), second.to(patcher.load_device)
        ).cpu()

    return flow


def check_flow(node: str, socket: str, choice: str) -> str | None:
    """Checks that what an optical flow needs is there, without reading it.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        choice: One of `flow_choices`.

    Returns:
        The file of its weights, None if it has none.

    Raises:
        NodeError: If the file or the library that runs the flow is missing.
    """
    try:
        library("cv2" if choice == DIS else "torchvision")
    except LibraryError as error:
        raise library_error(node, error, socket, "RAFT" if choice == DIS else DIS) from error
    if choice == DIS:
        return None
    _register()
    folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
    path: str | None = folder_paths.get_full_path(FOLDER, choice)
    if path is None:
        raise NodeError(
            node,
            socket,
            f"no file {choice[:LONGEST_SHOWN]!r} in {folders}.",
            f"Put torchvision's weights of RAFT there, or choose {DIS}.",
        )
    return path


def _register() -> None:
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
