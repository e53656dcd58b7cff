"""Files that are there whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

# Folders of what is being written; after so many seconds without a change nobody writes there.
PART, LEFT_AFTER = ".tokenflow-part-", 3600.0


def write_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors to a safetensors file: there is a whole one at `path` or none.

    It writes beside `path`, makes sure of it and renames. Beside it there is nothing but, if the
    process is killed, a hidden folder that `remove_leftovers` finds.

    Args:
        path: The file, in an existing folder.
        tensors: Contiguous ones on the CPU, which share no memory.
        metadata: Of the file.

    Raises:
        OSError: As the file system does.
    """
    try:
        # The library has temporary files of its own.
        with tempfile.TemporaryDirectory(prefix=PART, dir=path.parent) as folder:
            part = Path(folder, "part")
            part.touch()
            # For whom the host's other files are; the library's own are their owner's alone.
            mode = part.stat().st_mode
            save_file(dict(tensors), part, dict(metadata))
            part.chmod(mode)
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(part, path)
    except SafetensorError as error:  # what the library makes of the file system's errors
        raise OSError(str(error)) from error


def sync_folder(folder: Path) -> None:
    """Makes sure that the names in a folder are on the disk, where the system can.

    Args:
        folder: An existing folder.

    Raises:
        OSError: As the file system does.
    """
    if os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what processes that were killed while they wrote have left in a folder.

    It would stay for ever.

    Args:
        folder: Where they wrote.
    """
    for left in folder.glob(f"{PART}*"):
        with suppress(OSError):  # another process may have come first
            changed = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if time.time() - changed > LEFT_AFTER:
                shutil.rmtree(left)


def sha256(tensor: Tensor) -> str:
    """Returns the digest of a contiguous tensor on the CPU, its shape included."""
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
