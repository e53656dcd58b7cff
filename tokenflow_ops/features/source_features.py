"""A source clip's features: the stored ones, and those that the model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inversion import Inversion
from ..matching.surroundings import with_surroundings
from ..storage.counted import Counted
from .descriptors import Descriptor
from .grid import token_grid
from .stores import FeatureStore

# Called with a step, some frames' features by layer (n, ...), the number of the first of these
# frames, and how many there are in all, as `FeatureStore.put`.
Consumer = Callable[[int, dict[str, Tensor], int, int], None]
# Called once for each step, with the features of all frames that were asked for.
StepConsumer = Callable[[int, dict[str, Tensor]], None]


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
