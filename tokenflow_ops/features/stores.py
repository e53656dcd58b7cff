"""Where features are kept: in memory or on the disk."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class FeatureStore(Protocol):
    """Keeps one tensor with N rows per (step, layer)."""

    def put(
        self, step: int, layers: Mapping[str, Tensor], first: int = 0, total: int | None = None
    ) -> None:
        """Keeps the tensors of all layers of one step, or of some frames of it.

        Args:
            step: Step of the inversion.
            layers: By layer a tensor with one row per frame, (n, ...).
            first: The first frame's number. Parts come in order.
            total: Frames of the clip, None for those of this part.
        """

    def get(self, step: int, layer: str, frames: Tensor | None = None) -> Tensor:
        """Returns a layer's tensor at a step, on the CPU.

        Args:
            step: Step of the inversion.
            layer: The layer's path.
            frames: Frame numbers, (n,); None for all.

        Returns:
            The rows of `frames`, (n, ...).

        Raises:
            KeyError: If it was never put.
        """

    def has(self, step: int, layer: str) -> bool:
        """Tells whether `get` would find a layer's tensor at a step.

        Args:
            step: Step of the inversion.
            layer: The layer's path.

        Returns:
            True if it was put.
        """

    def held(self) -> Iterable[Tensor]:
        """Lists the tensors that it keeps in memory."""


class MemoryStore:
    """A `FeatureStore` in host memory."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], Tensor] = {}

    def put(
        self, step: int, layers: Mapping[str, Tensor], first: int = 0, total: int | None = None
    ) -> None:
        """Keeps the tensors of all layers of one step, or of some frames of it, on the CPU.

        Args:
            step: Step of the inversion.
            layers: By layer a tensor (n, ...).
            first: The first frame's number.
            total: Frames of the clip, None for those of this part.
        """
        for layer, part in layers.items():
            if first == 0:
                shape = len(part) if total is None else total, *part.shape[1:]
                self._kept[step, layer] = torch.empty(shape, dtype=part.dtype)
            self._kept[step, layer][first : first + len(part)] = part

    def get(self, step: int, layer: str, frames: Tensor | None = None) -> Tensor:
        """Returns a layer's tensor at a step, on the CPU.

        Args:
            step: Step of the inversion.
            layer: The layer's path.
            frames: Frame numbers, (n,); None for all.

        Returns:
            The rows of `frames`, (n, ...).

        Raises:
            KeyError: If it was never put.
        """
        kept = self._kept[step, layer]
        return kept if frames is None else kept[frames]

    def has(self, step: int, layer: str) -> bool:
        """Tells whether a layer's tensor at a step was put.

        Args:
            step: Step of the inversion.
            layer: The layer's path.

        Returns:
            True if it was.
        """
        return (step, layer) in self._kept

    def held(self) -> Iterable[Tensor]:
        return self._kept.values()


class DiskStore:
    """A `FeatureStore` of safetensors files in a folder of its own: one for each part that is put.

    The folder is removed with the object.

    Args:
        parent: An existing folder, where that folder is made.

    Raises:
        OSError: As the file system does.
    """

    def __init__(self, parent: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tokenflow-features-", dir=parent)
        self._layers: dict[int, frozenset[str]] = {}
        self._starts: dict[int, list[int]] = {}  # of every step: its parts' first frames, and N

    def put(
        self, step: int, layers: Mapping[str, Tensor], first: int = 0, total: int | None = None
    ) -> None:
        """Writes the tensors of all layers of one step, or of some frames of it.

        Args:
            step: Step of the inversion.
            layers: By layer a tensor (n, ...).
            first: The first frame's number.
            total: Frames of the clip, None for those of this part.

        Raises:
            OSError: As the file system does.
        """
        if first == 0:
            self._starts[step] = [0]
        try:
            save_file(
                {layer: tensor.cpu().contiguous() for layer, tensor in layers.items()},
                self._file(step, first),
            )
        except SafetensorError as error:  # what the library makes of the file system's errors
            raise OSError(str(error)) from error
        self._starts[step].append(first + len(next(iter(layers.values()))))
        self._layers[step] = frozenset(layers)

    def get(self, step: int, layer: str, frames: Tensor | None = None) -> Tensor:
        """Reads a layer's tensor at a step.

        Args:
            step: Step of the inversion.
            layer: The layer's path.
            frames: Frame numbers, (n,); None for all.

        Returns:
            The rows of `frames`, (n, ...), on the CPU.

        Raises:
            KeyError: If it was never put.
        """
        if not self.has(step, layer):
            raise KeyError((step, layer))
        starts = self._starts[step]
        asked = range(starts[-1]) if frames is None else frames.tolist()
        found: list[Tensor] = []
        for first, numbers in groupby(asked, lambda i: starts[bisect_right(starts, i) - 1]):
            with safe_open(self._file(step, first), framework="pt") as file:
                rows = file.get_slice(layer)
                found += [rows[i - first : i - first + 1] for i in numbers]
        return torch.cat(found)

    def _file(self, step: int, first: int) -> Path:
        return Path(self._folder.name) / f"{step}-{first}.safetensors"

    def has(self, step: int, layer: str) -> bool:
        """Tells whether a layer's tensor at a step was put.

        Args:
            step: Step of the inversion.
            layer: The layer's path.

        Returns:
            True if it was.
        """
        return layer in self._layers.get(step, ())

    def held(self) -> Iterable[Tensor]:
        return ()
