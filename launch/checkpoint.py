"""What a checkpoint file is, by its header alone: nothing of it is loaded."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

# By the width of a UNet's prompts, and by the names of a transformer's blocks.
SD1, SD2, SDXL, SD3, FLUX = "SD 1.x", "SD 2.x", "SDXL", "SD 3", "Flux"
EMBEDDED, OTHER = "embedded", "another model"
WIDTHS = {768: SD1, 1024: SD2, 2048: SDXL}
BLOCKS = {"joint_blocks.": SD3, "double_blocks.": FLUX}
PREFIX = "model.diffusion_model."
TEXT = ("cond_stage_model.", "conditioner.", "text_encoders.")
AUTOENCODER = ("first_stage_model.", "vae.")
WITH_HEADER, WITHOUT = (".safetensors", ".sft"), (".ckpt",)
LONGEST_HEADER = 1 << 27  # bytes
LFS = b"version https://git-lfs"


class CheckpointError(ValueError):
    """There is no such checkpoint, or it is none; the message says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file.

    Attributes:
        path: The file.
        family: What it is of.
        lacks: What a whole checkpoint has and this one has not, in words.
    """

    path: Path
    family: str
    lacks: tuple[str, ...] = ()


def find_checkpoint(given: Path, comfyui: Path | None) -> Checkpoint:
    """Finds a checkpoint and reads what it is.

    Args:
        given: A file, or the name of one in ComfyUI's folder of checkpoints.
        comfyui: The folder of the ComfyUI, None while there is none.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If there is none, or it is none.
    """
    if given.is_file():
        return read_checkpoint(given.absolute())
    if given.is_dir():
        raise CheckpointError(f"{given} is a folder. Name the checkpoint's file.")
    folder = None if comfyui is None else (comfyui / "models" / "checkpoints").resolve()
    if folder and not given.is_absolute():
        path = folder / given
        if path.is_file() and path.absolute().is_relative_to(folder) and ".." not in given.parts:
            return read_checkpoint(path)
    where = f", nor in {folder}" if folder else ""
    raise CheckpointError(f"there is no checkpoint {given}{where}. Name the file with its folder.")


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads what a file of weights is.

    Args:
        path: The file.

    Returns:
        The checkpoint; of a .ckpt, which has no header, no more than its path.

    Raises:
        CheckpointError: If it is no such file, or is cut short.
    """
    if path.suffix.lower() in WITHOUT:
        return Checkpoint(path, OTHER)
    if path.suffix.lower() not in WITH_HEADER:
        known = ", ".join((*WITH_HEADER, *WITHOUT))
        raise CheckpointError(f"{path} is no checkpoint: its name ends in none of {known}.")
    shapes = read_shapes(path)
    parts = {"text encoder": TEXT, "autoencoder": AUTOENCODER}
    lacks = tuple(
        what
        for what, starts in parts.items()
        if not any(name.startswith(starts) for name in shapes)
    )
    if "codec.basis" in shapes:
        return Checkpoint(path, EMBEDDED)
    return Checkpoint(path, _family(shapes), lacks)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads names and shapes of a safetensors file's tensors.

    Args:
        path: The file.

    Returns:
        {name: shape}.

    Raises:
        CheckpointError: If it is none, or is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(len(LFS))
        if begin == LFS:
            raise CheckpointError(
                f"{path} is a Git LFS pointer. Fetch the file that it stands for."
            )
        length = struct.unpack("<Q", begin[:8])[0] if size > 8 else 0
        if not 1 < length <= LONGEST_HEADER:
            raise CheckpointError(f"{path} is no safetensors file.")
        file.seek(8)
        text = file.read(length)
    try:
        header = {name: entry for name, entry in json.loads(text).items() if name[:2] != "__"}
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        end = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or is cut short.") from error
    if end > size:
        raise CheckpointError(
            f"{path} is cut short: {size} of {end} bytes are there. Fetch it again."
        )
    return shapes


def _family(shapes: dict[str, tuple[int, ...]]) -> str:
    """What a diffusion model is by its tensors' names and shapes."""
    names = [name.removeprefix(PREFIX) for name in shapes]
    for start, family in BLOCKS.items():
        if any(name.startswith(start) for name in names):
            return family
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and len(shape) == 2:
            return WIDTHS.get(shape[1], OTHER)
    return OTHER
