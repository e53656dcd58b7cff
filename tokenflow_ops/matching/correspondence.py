"""Correspondences between the source's frames and its keyframes: gamma^{i->k} (paper, equations 3
and 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import Descriptor, SourceFeatures
from ..keyframes import Neighbours
from ..propagation import propagate
from ..storage.counted import Counted


def index_type(tokens: int) -> torch.dtype:
    """The smallest type for indices of so many tokens."""
    return torch.int16 if tokens <= torch.iinfo(torch.int16).max else torch.int32


@dataclass(frozen=True)
class PairMatches:
    """gamma^{i->k} for every pair of a frame and a keyframe that some step asks for; random
    keyframes come again at other steps.

    frames: N. pairs: (M,) int64, ascending, frame * N + keyframe. tokens: by descriptor (M, P)
    token indices of `index_type`.
    """

    frames: int
    pairs: Tensor
    tokens: Mapping[Descriptor, Tensor]

    def held(self) -> Iterable[Tensor]:
        """Its tensors."""
        return self.pairs, *self.tokens.values()

    def between(self, descriptor: Descriptor, frames: Tensor, keyframes: Tensor) -> Tensor:
        """(n, P) token indices of frames (n,) in keyframes (n,).

        Raises: KeyError for a pair that was not asked for.
        """
        wanted = frames * self.frames + keyframes
        rows = torch.searchsorted(self.pairs, wanted).clamp(max=len(self.pairs) - 1)
        if not torch.equal(self.pairs[rows], wanted):
            raise KeyError("frames without matches in these keyframes")
        return self.tokens[descriptor][rows]


@dataclass(frozen=True)
class StepMatches:
    """The keyframes of one sampling step and every frame's matches to them.

    keyframes: (k,) int64 frame numbers, ascending. near: each frame's two keyframes and weight.
    pairs: the matches, shared with all steps of the same features.
    """

    keyframes: Tensor
    near: Neighbours
    pairs: PairMatches

    def tokens(self, descriptor: Descriptor, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Past and future token indices (n, P) of frames (n,), all if None."""
        frames = torch.arange(self.pairs.frames) if frames is None else frames
        near = self.near.of(frames)
        past, future = (self.keyframes[side] for side in (near.past, near.future))
        found = self.pairs.between(descriptor, frames, past)
        return found, found if torch.equal(past, future) else self.pairs.between(
            descriptor, frames, future
        )


@dataclass(frozen=True)
class Correspondences(Counted):
    """The matches of a clip for every sampling step, with the keyframe schedule they belong to.

    features: the source features they were searched on. steps: one `StepMatches` for each of the S
    steps of the inversion. interval: frames per keyframe. fixed: whether all steps share their
    keyframes. backend: the search that was used. Raises: ValueError if the number of steps is not
    the inversion's.
    """

    features: SourceFeatures
    steps: tuple[StepMatches, ...]
    interval: int
    fixed: bool
    backend: str

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.features.inversion.sigmas) - 1:
            raise ValueError(
                f"{len(self.steps)} steps of matches for {len(self.features.inversion.sigmas) - 1} steps of inversion"
            )

    def held(self) -> Iterable[Tensor]:
        matches = (
            tensor
            for step in self.steps
            for tensor in (step.keyframes, *step.near.held(), *step.pairs.held())
        )
        return *self.features.held(), *matches

    def tokens(self, step: int, layer: str, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Past and future token indices (n, P) of frames (n,), all if None, for a self-attention
        layer of the model at a step.
        """
        return self.steps[step].tokens(self.features.matched_by[layer], frames)


def carry(
    keyframes: Tensor, near: Neighbours, tokens: tuple[Tensor, Tensor], grid: tuple[int, int]
) -> Tensor:
    """Frames made of their two keyframes' patches, as equation 6 makes tokens: for latents,
    features and images.

    keyframes: (k, C, h, w). near: the frames' positions in them. tokens: past and future token
    indices, each (n, P). grid: rows and columns of the P tokens; a token covers a square patch, cut
    off at the right and the bottom where the picture ends. Returns: (n, C, h, w).
    """
    rows, columns = grid
    height, width = keyframes.shape[2:]
    patch = max(-(-height // rows), -(-width // columns))
    whole = F.pad(
        keyframes, (0, columns * patch - width, 0, rows * patch - height), mode="replicate"
    )
    base = F.pixel_unshuffle(whole, patch).flatten(2).transpose(1, 2)  # (k, P, C * patch ** 2)
    sides = (part.to(base.device) for part in (near.past, near.future, near.weight, *tokens))
    return F.pixel_shuffle(propagate(base, *sides).transpose(1, 2).unflatten(2, grid), patch)[
        ..., :height, :width
    ]
