"""Self-attention features of the source frames, phi_l(x_i^t), and where they are kept (paper, section 4.1)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .inversion import Inversion

Consumer = Callable[[int, dict[str, Tensor]], None]


class FeatureStore(Protocol):
    """Keeps one tensor with N rows per (step, layer)."""

    def put(self, step: int, layers: Mapping[str, Tensor]) -> None:
        """Keeps the tensors (N, ...) of all layers of one step."""

    def get(self, step: int, layer: str, frames: Tensor | None = None) -> Tensor:
        """The rows of `frames` (all if None) of one layer, on the CPU. Raises: KeyError if it was never put."""

    def has(self, step: int, layer: str) -> bool:
        """Whether `get` would find it."""


class MemoryStore:
    """A `FeatureStore` in host memory."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], Tensor] = {}

    def put(self, step: int, layers: Mapping[str, Tensor]) -> None:
        for layer, tensor in layers.items():
            self._kept[step, layer] = tensor.cpu()

    def get(self, step: int, layer: str, frames: Tensor | None = None) -> Tensor:
        kept = self._kept[step, layer]
        return kept if frames is None else kept[frames]

    def has(self, step: int, layer: str) -> bool:
        return (step, layer) in self._kept


class DiskStore:
    """A `FeatureStore` of one safetensors file per step in a folder of its own, removed with the object.

    parent: an existing folder. Raises: OSError as the file system does.
    """

    def __init__(self, parent: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tokenflow-features-", dir=parent)
        self._layers: dict[int, frozenset[str]] = {}

    def _file(self, step: int) -> Path:
        return Path(self._folder.name) / f"{step}.safetensors"

    def put(self, step: int, layers: Mapping[str, Tensor]) -> None:
        save_file({layer: tensor.cpu().contiguous() for layer, tensor in layers.items()}, self._file(step))
        self._layers[step] = frozenset(layers)

    def get(self, step: int, layer: str, frames: Tensor | None = None) -> Tensor:
        if not self.has(step, layer):
            raise KeyError((step, layer))
        with safe_open(self._file(step), framework="pt") as file:
            if frames is None:
                return file.get_tensor(layer)
            rows = file.get_slice(layer)
            return torch.cat([rows[i : i + 1] for i in frames.tolist()])

    def has(self, step: int, layer: str) -> bool:
        return layer in self._layers.get(step, ())


@dataclass(frozen=True)
class SourceFeatures:
    """What is known of a source clip's self-attention features, and the stored part of them.

    inversion: the clip's path to noise; features of step j are those of inversion.latents[j] at inversion.sigmas[j].
    shapes: for every self-attention layer of the model, in the order it runs them: (P, C), tokens and width.
    matched_by: for every layer the layer whose features its correspondences are searched on (itself, or one for its resolution).
    steps: the steps with features, ascending; other steps use the nearest of them.
    store: the kept features (N, P, C) by step and layer, or None: the model is run again when they are needed.
    compute: called with layers, steps and a consumer; runs the model and hands the consumer each step's features (N, P, C) by layer.
    """

    inversion: Inversion
    shapes: Mapping[str, tuple[int, int]]
    matched_by: Mapping[str, str]
    steps: tuple[int, ...]
    store: FeatureStore | None
    compute: Callable[[Iterable[str], Iterable[int], Consumer], None]

    def __post_init__(self) -> None:
        if not self.shapes or set(self.matched_by) != set(self.shapes):
            raise ValueError("every self-attention layer needs a layer to take its matches from, and there must be at least one")
        if not self.steps or list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps must ascend and hold at least one step")

    @property
    def match_layers(self) -> tuple[str, ...]:
        """The layers that correspondences are searched on."""
        return tuple(dict.fromkeys(self.matched_by[layer] for layer in self.shapes))

    def stream(self, layers: Sequence[str], consume: Consumer) -> None:
        """Hands over the features of these layers for every step that has them, noisiest first: the stored ones, or computed now."""
        if self.store is None:
            self.compute(layers, self.steps, consume)
            return
        for step in self.steps:
            consume(step, {layer: self.store.get(step, layer) for layer in layers})

    def nearest_step(self, step: int) -> int:
        """The step with features closest to `step`; of two the earlier (noisier) one."""
        return min(self.steps, key=lambda known: (abs(known - step), known))


def share_by_resolution(shapes: Mapping[str, tuple[int, int]], preferred: Iterable[str] = ()) -> dict[str, str]:
    """For every layer the layer of its resolution to match on: the last of the `preferred` ones there, else the last of all.

    Late decoder layers carry semantics at full detail, and deep layers of one resolution agree on where things are (DIFT, 2306.03881).
    """
    preferred = set(preferred)
    chosen: dict[int, str] = {}
    for layer, (tokens, _) in shapes.items():
        if tokens not in chosen or layer in preferred or chosen[tokens] not in preferred:
            chosen[tokens] = layer
    return {layer: chosen[tokens] for layer, (tokens, _) in shapes.items()}


def finest_layer(shapes: Mapping[str, tuple[int, int]]) -> str:
    """Of the layers with most tokens the last one, by `SourceFeatures.shapes`: the decoder's, closest to the picture."""
    return max(reversed(list(shapes)), key=lambda layer: shapes[layer][0])


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a layer's tokens for a latent of height x width: each UNet level halves, rounding up.

    Raises: ValueError if no level has that many tokens.
    """
    rows, columns = height, width
    while rows * columns > tokens and rows * columns > 1:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens are no level of a {height} x {width} latent")
    return rows, columns


def principal_colours(features: Tensor) -> Tensor:
    """The first three principal components of the features as colours, one map of all frames so that colours can be compared.

    features: (N, P, C). Returns: (N, P, 3) float32 in [0, 1].
    """
    flat = features.reshape(-1, features.shape[-1]).float()
    centred = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(centred[:: max(1, len(centred) // 4096)], full_matrices=False)
    axes = axes[:3]
    # The sign of a component is arbitrary: fix it, so that the same clip always has the same colours.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    colours = centred @ axes.T
    low, high = colours.quantile(0.02, 0, keepdim=True), colours.quantile(0.98, 0, keepdim=True)
    scaled = ((colours - low) / (high - low).clamp(min=1e-8)).clamp(0, 1)
    if scaled.shape[1] < 3:
        scaled = torch.cat([scaled, scaled[:, :1].expand(-1, 3 - scaled.shape[1])], 1)
    return scaled.reshape(*features.shape[:2], 3)
