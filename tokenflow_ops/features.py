"""Self-attention features of the source frames, phi_l(x_i^t), and where they are kept (paper,
section 4.1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .inversion import Inversion
from .storage.counted import Counted

Consumer = Callable[[int, dict[str, Tensor]], None]
# The layers, coarse to fine, whose features side by side tell a token from others.
Descriptor = tuple[str, ...]


class FeatureStore(Protocol):
    """Keeps one tensor with N rows per (step, layer)."""

    def put(self, step: int, layers: Mapping[str, Tensor]) -> None:
        """Keeps the tensors (N, ...) of all layers of one step."""

    def get(self, step: int, layer: str, frames: Tensor | None = None) -> Tensor:
        """The rows of `frames` (all if None) of one layer, on the CPU.

        Raises: KeyError if it was never put.
        """

    def has(self, step: int, layer: str) -> bool:
        """Whether `get` would find it."""

    def held(self) -> Iterable[Tensor]:
        """What it keeps in memory."""


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

    def held(self) -> Iterable[Tensor]:
        return self._kept.values()


class DiskStore:
    """A `FeatureStore` of one safetensors file per step in a folder of its own, removed with the
    object.

    parent: an existing folder. Raises: OSError as the file system does.
    """

    def __init__(self, parent: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tokenflow-features-", dir=parent)
        self._layers: dict[int, frozenset[str]] = {}

    def _file(self, step: int) -> Path:
        return Path(self._folder.name) / f"{step}.safetensors"

    def put(self, step: int, layers: Mapping[str, Tensor]) -> None:
        try:
            save_file(
                {layer: tensor.cpu().contiguous() for layer, tensor in layers.items()},
                self._file(step),
            )
        except SafetensorError as error:  # what the library makes of the file system's errors
            raise OSError(str(error)) from error
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

    def held(self) -> Iterable[Tensor]:
        return ()


class Compute(Protocol):
    """Runs the model on the source."""

    def __call__(
        self,
        layers: Iterable[str],
        steps: Iterable[int],
        consume: Consumer,
        frames: Tensor | None = None,
    ) -> None:
        """Hands over each step's features (n, P, C) by layer, of `frames` (n,) or, if None, of all."""


@dataclass(frozen=True)
class SourceFeatures(Counted):
    """What is known of a source clip's self-attention features, and the stored part of them.

    inversion: the clip's path to noise; features of step j are those of inversion.latents[j] at
    inversion.sigmas[j]. shapes: for every self-attention layer of the model, in the order it runs
    them: (P, C), tokens and width. matched_by: for every layer the layers whose features its
    correspondences are searched on, the last one with as many tokens. steps: the steps with
    features, ascending; other steps use the nearest of them. store: the kept features (N, P, C) by
    step and layer, or None: the model is run again when they are needed. compute: runs the model
    for features that are not stored.
    """

    inversion: Inversion
    shapes: Mapping[str, tuple[int, int]]
    matched_by: Mapping[str, Descriptor]
    steps: tuple[int, ...]
    store: FeatureStore | None
    compute: Compute

    def __post_init__(self) -> None:
        if not self.shapes or set(self.matched_by) != set(self.shapes):
            raise ValueError(
                "every self-attention layer needs layers to take its matches from, and there must be at least one"
            )
        if any(
            self.shapes[found_by[-1]][0] != self.shapes[layer][0]
            for layer, found_by in self.matched_by.items()
        ):
            raise ValueError(
                "the last layer that another one's matches are taken from must have as many tokens"
            )
        if not self.steps or list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps must ascend and hold at least one step")

    def held(self) -> Iterable[Tensor]:
        return *self.inversion.held(), *(self.store.held() if self.store else ())

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """What correspondences are searched on."""
        return tuple(dict.fromkeys(self.matched_by[layer] for layer in self.shapes))

    @property
    def match_layers(self) -> tuple[str, ...]:
        """The layers that descriptors are made of."""
        return tuple(
            dict.fromkeys(layer for descriptor in self.descriptors for layer in descriptor)
        )

    @property
    def finest(self) -> Descriptor:
        """The descriptor of the decoder's last layer with most tokens, which is closest to the
        picture.
        """
        return self.matched_by[
            max(reversed(list(self.shapes)), key=lambda layer: self.shapes[layer][0])
        ]

    def tokens(self, descriptor: Descriptor) -> int:
        """P of its finest layer."""
        return self.shapes[descriptor[-1]][0]

    def grid(self, descriptor: Descriptor) -> tuple[int, int]:
        """Rows and columns of its finest layer's tokens."""
        return token_grid(self.tokens(descriptor), *self.inversion.latents.shape[-2:])

    def stream(self, frames: Tensor, consume: Consumer) -> None:
        """Hands over the match layers' features of `frames` (n,) for every step that has them,
        noisiest first: stored, or computed now.
        """
        if self.store is None:
            self.compute(self.match_layers, self.steps, consume, frames=frames)
            return
        for step in self.steps:
            consume(
                step, {layer: self.store.get(step, layer, frames) for layer in self.match_layers}
            )

    def at(self, step: int, layers: Iterable[str], frames: Tensor) -> dict[str, Tensor]:
        """The features (n, P, C) of some layers and frames (n,) at any step: stored, or computed
        now.
        """
        layers, store, found = tuple(layers), self.store, {}
        if store is not None and all(store.has(step, layer) for layer in layers):
            return {layer: store.get(step, layer, frames) for layer in layers}
        self.compute(layers, [step], lambda _, kept: found.update(kept), frames=frames)
        return found

    def describe(self, features: Mapping[str, Tensor], descriptor: Descriptor) -> Tensor:
        """A descriptor's features (n, P, C) from those of its layers: each of length one, coarser
        ones enlarged, side by side.

        The coarse ones tell which part of the picture a token belongs to, the finest one where in
        it (Luo et al., 2305.14334, join layers likewise). One layer alone is taken as it is: the
        search is by cosine distance.
        """
        if len(descriptor) == 1:
            return features[descriptor[0]]
        rows, columns = self.grid(descriptor)
        parts = []
        for layer in descriptor:
            part = F.normalize(features[layer].float(), dim=-1)
            if part.shape[1] != rows * columns:
                plane = part.transpose(1, 2).unflatten(
                    2, token_grid(part.shape[1], *self.inversion.latents.shape[-2:])
                )
                enlarged = F.interpolate(plane, (rows, columns), mode="bilinear")
                part = F.normalize(enlarged.flatten(2).transpose(1, 2), dim=-1)
            parts.append(part.to(features[layer].dtype))
        return torch.cat(parts, -1)

    def nearest_step(self, step: int) -> int:
        """The step with features closest to `step`; of two the earlier (noisier) one."""
        return min(self.steps, key=lambda known: (abs(known - step), known))


def share_by_resolution(
    shapes: Mapping[str, tuple[int, int]], preferred: Iterable[str] = ()
) -> dict[str, str]:
    """For every layer the layer of its resolution to match on: the last of the `preferred` ones
    there, else the last of all.
    """
    preferred = set(preferred)
    chosen: dict[int, str] = {}
    for layer, (tokens, _) in shapes.items():
        if tokens not in chosen or layer in preferred or chosen[tokens] not in preferred:
            chosen[tokens] = layer
    return {layer: chosen[tokens] for layer, (tokens, _) in shapes.items()}


def coarse_to_fine(
    shapes: Mapping[str, tuple[int, int]], decoder: Iterable[str]
) -> dict[str, Descriptor]:
    """For every layer the decoder's first layer of its resolution, after those of the coarser ones.

    What the decoder has just brought to a resolution still knows the whole picture; its later
    layers turn to texture, which is everywhere. A layer of a resolution that the decoder lacks is
    matched on itself.
    """
    first: dict[int, str] = {}
    for layer in decoder:
        first.setdefault(shapes[layer][0], layer)
    return {
        layer: tuple(first[coarser] for coarser in sorted(first) if coarser <= tokens)
        if tokens in first
        else (layer,)
        for layer, (tokens, _) in shapes.items()
    }


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a layer's tokens for a latent of height x width: each UNet level halves,
    rounding up.

    Raises: ValueError if no level has that many tokens.
    """
    rows, columns = height, width
    while rows * columns > tokens and rows * columns > 1:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens are no level of a {height} x {width} latent")
    return rows, columns
