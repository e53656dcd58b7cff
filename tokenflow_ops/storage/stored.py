"""Inversions as safetensors files.

Tensors, all float32: `sigmas`, `latents`, `mask` if there is one, and `prompt0`, `prompt1` ... of
the source prompt. Two strings in the metadata: a record (JSON: the format's version, what the
inversion was made with, a SHA-256 of every tensor) and the record's own SHA-256. Other metadata
belongs to other programs and is not read. Whoever writes a file can make its checksums fit, so that
everything is checked for what it is as well.

The prompt of a file is only ever compared with the one the user has connected. Nothing else could
be trusted: it is the host's structure, and what a host does with an option that a stranger put
there is not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..inversion import Inversion
from .prompt import Prompt
from .whole import remove_leftovers, sha256, write_whole

# Before format 2 a fingerprint was a digest alone.
VERSION, READ = 2, (1, 2)
RECORD, CHECKSUM = "tokenflow_inversion", "tokenflow_inversion_sha256"
FIELDS = {
    "version": int,
    "fingerprint": str,
    "steps": int,
    "scheduler": str,
    "prompt": list,
    "tensors": dict,
}
LARGE = "sigmas", "latents"
LONGEST_RECORD = 2**20
LONGEST_NAME = 100
LONGEST_FINGERPRINT = 2**16
MOST_STEPS = 10_000
# Of sigmas and latents. The noisiest schedules of image models (zero terminal SNR) end at 4,500.
LARGEST = 1e6


class StoredInversionError(ValueError):
    """What was found in a file, and what to do.

    Args:
        found: What is wrong with the file.
        remedy: What to do.
    """

    def __init__(
        self,
        found: str,
        remedy: str = "Save the inversion again, or copy the file again from where it came.",
    ) -> None:
        super().__init__(f"{found} {remedy}")
        self.found, self.remedy = found, remedy


def write_inversion(
    path: Path, inversion: Inversion, prompt: Prompt, metadata: Mapping[str, str]
) -> None:
    """Writes an inversion to a file: whatever happens, there is a whole file at `path` or none.

    What a process that was killed while it wrote has left there, a later call removes.

    float32, so that an edit is the same bits as without the file. Half precision, half as large,
    cost up to 0.6 dB of the reconstruction on a random network (50 steps).

    Args:
        path: The file, in an existing folder.
        inversion: What to write.
        prompt: Of the inversion's conditioning.
        metadata: Other programs', kept beside ours.

    Raises:
        OSError: As the file system does.
    """
    tensors = {"sigmas": inversion.sigmas, "latents": inversion.latents}
    tensors |= {} if inversion.mask is None else {"mask": inversion.mask}
    tensors |= {f"prompt{i}": tensor for i, tensor in enumerate(prompt.tensors)}
    # Copies, since safetensors refuses tensors that share memory: a prompt may hold one twice, or
    # the mask.
    tensors = {
        name: tensor.detach().to("cpu", torch.float32, copy=name not in LARGE).contiguous()
        for name, tensor in tensors.items()
    }
    record = json.dumps(
        {
            "version": VERSION,
            "fingerprint": inversion.fingerprint,
            "steps": inversion.steps,
            "scheduler": inversion.scheduler,
            "prompt": prompt.plain,
            "tensors": {name: sha256(tensor) for name, tensor in tensors.items()},
        }
    )
    remove_leftovers(path.parent)
    write_whole(
        path,
        tensors,
        {**metadata, RECORD: record, CHECKSUM: hashlib.sha256(record.encode()).hexdigest()},
    )


def read_inversion(path: Path, most_bytes: int) -> tuple[Inversion, Prompt]:
    """Reads the inversion in a file, without its conditioning, and the prompt it was made with.

    Args:
        path: The file.
        most_bytes: Larger files are refused before any memory is asked for.

    Returns:
        The inversion, and the prompt.

    Raises:
        StoredInversionError: For everything that is not whole, not of this format's version, too
            large or out of range.
    """
    try:
        _check_size(path.stat().st_size, most_bytes)
        with safe_open(path, framework="pt") as file:
            record = _read_record(file.metadata() or {})
            tensors = _read_tensors(file, record["tensors"])
    # RuntimeError is torch's, for memory and memory maps.
    except (SafetensorError, OSError, RuntimeError) as error:
        raise StoredInversionError(f"not a whole safetensors file ({str(error)[:200]}).") from error
    sigmas, latents, mask = tensors.pop("sigmas"), tensors.pop("latents"), tensors.pop("mask", None)
    try:
        inversion = Inversion(
            sigmas, latents, None, record["fingerprint"], record["steps"], record["scheduler"], mask
        )
    except ValueError as error:
        raise StoredInversionError(f"no path to noise: {error}.") from error
    if not len(sigmas) - 1 <= inversion.steps <= MOST_STEPS:
        raise StoredInversionError(f"{len(sigmas) - 1} steps of a schedule of {inversion.steps}.")
    if names := [
        name for name, tensor in (("sigmas", sigmas), ("latents", latents)) if not _within(tensor)
    ]:
        raise StoredInversionError(f"NaN, infinite or absurd values in {' and '.join(names)}.")
    if mask is not None and not _within(mask, 0, 1):
        raise StoredInversionError("a mask with values outside of 0 to 1.")
    return inversion, Prompt(
        record["prompt"], tuple(tensors[f"prompt{i}"] for i in range(len(tensors)))
    )


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise StoredInversionError(
            f"an inversion of {size / 2**30:.1f} GiB, {most / 2**30:.1f} GiB of memory are free.",
            "Free some memory, or invert fewer frames or steps.",
        )


def _read_record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The record, of this version and with nothing missing or of another type.

    What its values say is not known to be sensible.
    """
    text = metadata.get(RECORD)
    if text is None:
        raise StoredInversionError(
            "a safetensors file without an inversion.", "Choose one that Save Inversion wrote."
        )
    if (
        len(text) > LONGEST_RECORD
        or metadata.get(CHECKSUM) != hashlib.sha256(text.encode()).hexdigest()
    ):
        raise StoredInversionError("a damaged record of what the inversion was made with.")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoredInversionError("a record that is no JSON.") from error
    version = record.get("version") if isinstance(record, dict) else None
    if type(version) is int and version > VERSION:
        raise StoredInversionError(
            f"an inversion of format {version}, this pack reads up to {VERSION}.",
            "Install a newer version of the pack.",
        )
    if (
        version not in READ
        or set(record) != set(FIELDS)
        or any(type(record[name]) is not kind for name, kind in FIELDS.items())
    ):
        raise StoredInversionError("a record with missing, unknown or wrong entries.")
    if len(record["fingerprint"]) > LONGEST_FINGERPRINT or len(record["scheduler"]) > LONGEST_NAME:
        raise StoredInversionError("a record with names of absurd length.")
    return dict(record)


def _read_tensors(file: Any, checksums: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors, in memory of their own.

    The library has checked that the file's length is that of their shapes.
    """
    # The file is no dict.
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    prompts = {f"prompt{i}" for i in range(len(shapes.keys() - {*LARGE, "mask"}))}
    if shapes.keys() - {"mask"} != {*LARGE, *prompts} or set(shapes) != set(checksums):
        raise StoredInversionError("other tensors than an inversion has.")
    if others := sorted({part.get_dtype() for part in slices.values()} - {"F32"}):
        raise StoredInversionError(f"tensors of type {', '.join(others)} instead of F32.")
    if (
        len(shapes["latents"]) != 5
        or min(shapes["latents"]) < 1
        or len(shapes["sigmas"]) != 1
        or shapes["sigmas"][0] > MOST_STEPS + 1
    ):
        raise StoredInversionError(
            f"sigmas of shape {shapes['sigmas']} and latents of shape {shapes['latents']}."
        )
    if 0 in shapes.get("mask", ()):
        raise StoredInversionError(f"a mask of shape {shapes['mask']}.")
    tensors = {name: file.get_tensor(name).clone() for name in slices}
    if damaged := sorted(
        name for name, tensor in tensors.items() if checksums[name] != sha256(tensor)
    ):
        raise StoredInversionError(f"damaged {', '.join(damaged)}: the checksum is another.")
    return tensors


def _within(values: Tensor, least: float = -LARGEST, most: float = LARGEST) -> bool:
    """Whether nothing is NaN or outside of these bounds (a comparison with NaN is false)."""
    low, high = torch.aminmax(values)
    return bool(low >= least and high <= most)
