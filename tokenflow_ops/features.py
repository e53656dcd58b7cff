"""Self-attention features of the source frames and where they are kept (paper, section 4.1).

The features of frame i at layer l and noise level t are the paper's phi_l(x_i^t).
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .inversion import Inversion
from .matching.surroundings import with_surroundings
from .storage.counted import Counted

# Called with a step, some frames' features by layer (n, ...), the number of the first of these
# frames, and how many there are in all, as `FeatureStore.put`.
Consumer = Callable[[int, dict[str, Tensor], int, int], None]
# Called once for each step, with the features of all frames that were asked for.
StepConsumer = Callable[[int, dict[str, Tensor]], None]
# The layers, coarse to fine, whose features side by side tell a token from others.
Descriptor = tuple[str, ...]


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


class Compute(Protocol):
    """Runs the model on the source."""

    def __call__(
        self,
        layers: Iterable[str],
        steps: Iterable[int],
        consume: Consumer,
        frames: Tensor | None = None,
    ) -> None:
        """Computes the features of some steps, and hands them over step by step.

        Args:
            layers: Paths of the layers.
            steps: Steps of the inversion.
            consume: Called with each step and its features, by layer (n, P, C).
            frames: Frame numbers, (n,); None for all.
        """


class SourceFeatures(Counted):
    """Gives a source clip's self-attention features: the stored ones, and those it has computed.

    It is no plain data. What computes features holds the model, and so does this object for as
    long as it is needed; without it, it holds data alone and gives what is stored.

    Args:
        inversion: The clip's path to noise; features of step j are those of inversion.latents[j]
            at inversion.sigmas[j].
        shapes: For every self-attention layer of the model, in the order it runs them: (P, C),
            tokens and width.
        matched_by: For every layer the layers whose features its correspondences are searched on;
            the last of these has as many tokens as it.
        steps: The steps with features, ascending; other steps use the nearest of them.
        store: The kept features (N, P, C) by step and layer, or None for none.
        compute: Runs the model for features that are not stored; None if all that will be
            asked for is.
        surroundings: Whether a token is described with its surroundings and its place.

    Raises:
        ValueError: If there are no layers or no steps, or layers, numbers of tokens or the order of
            steps do not fit.
    """

    def __init__(
        self,
        inversion: Inversion,
        shapes: Mapping[str, tuple[int, int]],
        matched_by: Mapping[str, Descriptor],
        steps: tuple[int, ...],
        store: FeatureStore | None,
        compute: Compute | None = None,
        surroundings: bool = False,
    ) -> None:
        super().__init__()
        if not shapes or set(matched_by) != set(shapes):
            raise ValueError(
                "every self-attention layer needs layers to take its matches from, "
                "and there must be at least one"
            )
        if any(
            shapes[found_by[-1]][0] != shapes[layer][0] for layer, found_by in matched_by.items()
        ):
            raise ValueError(
                "the last layer that another one's matches are taken from must have as many tokens"
            )
        if not steps or list(steps) != sorted(set(steps)):
            raise ValueError("steps must ascend and hold at least one step")
        self.inversion, self.shapes, self.matched_by = inversion, shapes, matched_by
        self.steps, self.store, self.compute = steps, store, compute
        self.surroundings = surroundings

    # Of two with the same tensors each is itself.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

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
        """The descriptor of the last layer with most tokens, which is closest to the picture.

        That layer is the decoder's.
        """
        return self.matched_by[
            max(reversed(list(self.shapes)), key=lambda layer: self.shapes[layer][0])
        ]

    def tokens(self, descriptor: Descriptor) -> int:
        """Returns P, the number of tokens of the descriptor's finest layer."""
        return self.shapes[descriptor[-1]][0]

    def grid(self, descriptor: Descriptor) -> tuple[int, int]:
        """Returns rows and columns of the tokens of the descriptor's finest layer."""
        return self._grid_of(self.tokens(descriptor))

    def _grid_of(self, tokens: int) -> tuple[int, int]:
        return token_grid(tokens, *self.inversion.latents.shape[-2:])

    def stream(self, frames: Tensor, consume: StepConsumer) -> None:
        """Hands over the match layers' features of every step that has them, noisiest first.

        They are stored, or computed now.

        Args:
            frames: Frame numbers, (n,).
            consume: Called with each step and its features, by layer (n, P, C).

        Raises:
            LookupError: If they are not stored, and nothing computes them.
        """
        if self.store is None:
            self._model()(self.match_layers, self.steps, _by_step(consume), frames=frames)
            return
        for step in self.steps:
            consume(
                step, {layer: self.store.get(step, layer, frames) for layer in self.match_layers}
            )

    def at(self, step: int, layers: Iterable[str], frames: Tensor) -> dict[str, Tensor]:
        """Returns features of any step: stored, or computed now.

        Args:
            step: Step of the inversion.
            layers: Paths of the layers.
            frames: Frame numbers, (n,).

        Returns:
            By layer (n, P, C).

        Raises:
            LookupError: If they are not stored, and nothing computes them.
        """
        layers = tuple(layers)
        stored = self.stored(step, layers, frames)
        return compute_at(self._model(), step, layers, frames) if stored is None else stored

    def stored(self, step: int, layers: Iterable[str], frames: Tensor) -> dict[str, Tensor] | None:
        """Returns stored features.

        Args:
            step: Step of the inversion.
            layers: Paths of the layers.
            frames: Frame numbers, (n,).

        Returns:
            By layer (n, P, C); None if they are not all stored.
        """
        layers, store = tuple(layers), self.store
        if store is None or not all(store.has(step, layer) for layer in layers):
            return None
        return {layer: store.get(step, layer, frames) for layer in layers}

    def _model(self) -> Compute:
        if self.compute is None:
            raise LookupError("the features are not stored, and no model is there to compute them")
        return self.compute

    def describe(self, features: Mapping[str, Tensor], descriptor: Descriptor) -> Tensor:
        """Makes a descriptor's features from those of its layers.

        Each layer's are brought to length one, coarser ones enlarged, and all put side by side. The
        coarse ones tell which part of the picture a token belongs to, the finest one where in it
        (Luo et al., 2305.14334, join layers likewise). One layer alone is taken as it is: the
        search is by cosine distance.

        Args:
            features: By layer (n, P, C); each layer has P and C of its own.
            descriptor: The layers, coarse to fine.

        Returns:
            (n, P, C) with P of the finest layer and C of all layers together.
        """
        if self.surroundings:
            features = {
                layer: with_surroundings(tokens, self._grid_of(tokens.shape[1]))
                for layer, tokens in features.items()
            }
        if len(descriptor) == 1:
            return features[descriptor[0]]
        rows, columns = self.grid(descriptor)
        parts = []
        for layer in descriptor:
            part = F.normalize(features[layer].float(), dim=-1)
            if part.shape[1] != rows * columns:
                plane = part.transpose(1, 2).unflatten(2, self._grid_of(part.shape[1]))
                enlarged = F.interpolate(plane, (rows, columns), mode="bilinear")
                part = F.normalize(enlarged.flatten(2).transpose(1, 2), dim=-1)
            parts.append(part.to(features[layer].dtype))
        return torch.cat(parts, -1)

    def nearest_step(self, step: int) -> int:
        """Returns the step with features closest to `step`; of two the earlier (noisier) one."""
        return min(self.steps, key=lambda kept: (abs(kept - step), kept))


def compute_at(
    compute: Compute, step: int, layers: Iterable[str], frames: Tensor
) -> dict[str, Tensor]:
    """Computes the features of one step.

    Args:
        compute: Runs the model.
        step: Step of the inversion.
        layers: Paths of the layers.
        frames: Frame numbers, (n,).

    Returns:
        By layer (n, P, C), or (n, C, h, w) for hidden features.
    """
    found: dict[str, Tensor] = {}
    compute(layers, [step], _by_step(lambda _, layers: found.update(layers)), frames=frames)
    return found


def _by_step(consume: StepConsumer) -> Consumer:
    """Puts the parts of each step together."""
    parts: list[dict[str, Tensor]] = []

    def collect(step: int, found: dict[str, Tensor], first: int, total: int) -> None:
        parts.append(dict(found))
        if first + len(next(iter(found.values()))) < total:
            return
        whole = {layer: torch.cat([part.pop(layer) for part in parts]) for layer in found}
        parts.clear()
        consume(step, whole)

    return collect


def share_by_resolution(
    shapes: Mapping[str, tuple[int, int]], preferred: Iterable[str] = ()
) -> dict[str, str]:
    """Chooses for every layer the layer of its resolution to match on.

    It is the last of the `preferred` ones there, else the last of all.

    Args:
        shapes: By layer, in the order the model runs them: (P, C), tokens and width.
        preferred: Paths of layers.

    Returns:
        By layer the path of the chosen one.

    Examples:
        >>> shapes = {"down": (16, 8), "mid": (4, 8), "up": (16, 8)}
        >>> share_by_resolution(shapes)
        {'down': 'up', 'mid': 'mid', 'up': 'up'}
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
    """Chooses for every layer the decoder's first layers, up to its own resolution.

    One layer of each resolution, the coarser ones first. What the decoder has just brought to a
    resolution still knows the whole picture; its later layers turn to texture, which is everywhere.
    A layer of a resolution that the decoder lacks is matched on itself.

    Args:
        shapes: By layer (P, C), tokens and width.
        decoder: Paths of the decoder's layers, in the order the model runs them.

    Returns:
        By layer its descriptor.

    Examples:
        >>> shapes = {"down": (16, 8), "mid": (1, 8), "up": (4, 8), "top": (16, 8), "end": (16, 8)}
        >>> coarse_to_fine(shapes, decoder=["up", "top", "end"])["down"]
        ('up', 'top')
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
    """Finds rows and columns of a layer's tokens.

    Each level of a UNet halves rows and columns, rounding up.

    Args:
        tokens: P, the layer's number of tokens.
        height: Rows of the latent.
        width: Columns of the latent.

    Returns:
        Rows and columns; their product is P.

    Raises:
        ValueError: If no level has that many tokens.

    Examples:
        >>> token_grid(24, height=8, width=12)
        (4, 6)
    """
    rows, columns = height, width
    while rows * columns > tokens and rows * columns > 1:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens are no level of a {height} x {width} latent")
    return rows, columns
