"""Names of stored inversions in the host's input and output folders, and nowhere else.

They follow the host's conventions.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

from ..validation.errors import NodeError

SUFFIX = ".inversion.safetensors"
# What a name may not hold, on any system: a folder may be shared between them.
FORBIDDEN = r'[\x00-\x1f\x7f\\:*?"<>|]'
# In bytes. File systems allow 255 for a part; the host's counter and the suffix are added later.
LONGEST_PART, LONGEST = 180, 1000


def stored_names() -> list[str]:
    """Lists all stored inversions.

    Those of the output folder are annotated as the host does it: `name`, `sub/name [output]`.
    """
    found = []
    for root, annotation in (
        (folder_paths.get_input_directory(), ""),
        (folder_paths.get_output_directory(), " [output]"),
    ):
        paths = (
            Path(folder, name)
            for folder, _, names in os.walk(root)
            for name in names
            if name.endswith(SUFFIX)
        )
        found += sorted(path.relative_to(root).as_posix() + annotation for path in paths)
    return found


def stored_path(node: str, socket: str, name: str) -> Path:
    """Finds a stored inversion by its name.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        name: As `stored_names` gives it.

    Returns:
        The file's path.

    Raises:
        NodeError: If it is no such name, is not there or lies, by its name or through links,
            outside the input and output folders.
    """
    name = str(name)  # prompts of the API may hold anything
    inner, root = folder_paths.annotated_filepath(name)
    check_name(node, socket, inner)
    if root is not None and root not in (
        folder_paths.get_input_directory(),
        folder_paths.get_output_directory(),
    ):
        raise NodeError(
            node,
            socket,
            f"{_shown(name)} is neither in the input nor in the output folder.",
            "Move the file to one of them.",
        )
    path = Path(root or folder_paths.get_input_directory(), inner)
    if not inner.endswith(SUFFIX):
        raise NodeError(
            node,
            socket,
            f"{_shown(name)} does not end in {SUFFIX}.",
            "Choose a file that Save Inversion wrote.",
        )
    check_inside(node, socket, name, path, root or folder_paths.get_input_directory())
    if not os.path.isfile(path):
        raise NodeError(
            node,
            socket,
            f"{_shown(name)} is not there.",
            "Press R to read the folders again, and choose a file from the list.",
        )
    return path


def new_path(node: str, socket: str, prefix: str) -> Path:
    """Chooses where the next file of a prefix goes: in the output folder, with the host's counter.

    The folders of the prefix are made.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        prefix: A name, or folder/name.

    Returns:
        The file's path.

    Raises:
        NodeError: If the prefix is no name or leads outside the output folder, or if the folder
            cannot be made.
    """
    check_name(node, socket, prefix)
    root = os.path.abspath(folder_paths.get_output_directory())
    check_inside(node, socket, prefix, Path(root, prefix), root)
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError as error:
        raise NodeError(
            node,
            socket,
            f"the folder of {_shown(prefix)} cannot be made ({error}).",
            "Choose another name.",
        ) from error
    path = Path(folder, f"{name}_{counter:05}_{SUFFIX}")
    # Once more, as the host has filled in the date.
    check_inside(node, socket, prefix, path, root)
    return path


def check_name(node: str, socket: str, name: str) -> None:
    """Checks that a name is a relative path of parts that any file system takes.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        name: The name.

    Raises:
        NodeError: If it is not.
    """
    parts = name.split("/")
    if not name or any(part.strip() in ("", ".", "..") for part in parts):
        raise NodeError(
            node,
            socket,
            f"{_shown(name)} is no name inside a folder.",
            "Use a name, or folder/name, without '..'.",
        )
    if re.search(FORBIDDEN, name) or not _is_unicode(name):
        raise NodeError(
            node,
            socket,
            f"{_shown(name)} has characters that no file name may have.",
            "Use letters, digits, '-', '_' and '/'.",
        )
    if len(name.encode()) > LONGEST or any(len(part.encode()) > LONGEST_PART for part in parts):
        raise NodeError(
            node,
            socket,
            f"a name of {len(name)} characters, {_shown(name)}.",
            "Use a shorter name.",
        )


def check_inside(node: str, socket: str, name: str, path: Path, root: str) -> None:
    """Checks that a path does not lead, through links, out of a folder.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        name: The path as the user gave it.
        path: The path.
        root: The folder.

    Raises:
        NodeError: If it does.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise NodeError(
            node,
            socket,
            f"{_shown(name)} leads out of the folder through a link.",
            "Use a name without links.",
        )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    """A name fit for an error message, whatever it holds."""
    return repr(name if len(name) <= 80 else f"{name[:80]}...")
