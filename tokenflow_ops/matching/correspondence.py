"""Correspondences between the source's frames and its keyframes (paper, equations 3 and 4).

The paper calls them gamma^{i->k}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import Descriptor, SourceFeatures
from ..keyframes import ONE_SHOT, Neighbours
from ..propagation import propagate
from ..storage.counted import Counted


def index_type(tokens: int) -> torch.dtype:
    """Returns the smallest type for indices of so many tokens."""
    return torch.int16 if tokens <= torch.iinfo(torch.int16).max else torch.int32


@dataclass(frozen=True)
class PairMatches:
    """gamma^{i->k} for every pair of a frame and a keyframe that some step asks for.

    Random keyframes come again at other steps.

    Attributes:
        frames: N, the number of frames.
        pairs: (M,) int64, ascending, frame * N + keyframe.
        tokens: By descriptor (M, P) token indices of `index_type`.
    """

    frames: int
    pairs: Tensor
    tokens: Mapping[Descriptor, Tensor]

    def held(self) -> Iterable[Tensor]:
        """Lists its tensors."""
        return self.pairs, *self.tokens.values()

    def between(self, descriptor: Descriptor, frames: Tensor, keyframes: Tensor) -> Tensor:
        """Returns the matches of some frames in one keyframe each.

        Args:
            descriptor: The layers that were searched on.
            frames: Frame numbers, (n,).
            keyframes: For each frame the frame number of a keyframe, (n,).

        Returns:
            Token indices in the keyframes, (n, P).

        Raises:
            KeyError: For a pair that was not asked for.
        """
        wanted = frames * self.frames + keyframes
        rows = torch.searchsorted(self.pairs, wanted).clamp(max=len(self.pairs) - 1)
        if not torch.equal(self.pairs[rows], wanted):
            raise KeyError("frames without matches in these keyframes")
        return self.tokens[descriptor][rows]


@dataclass(frozen=True)
class StepMatches:
    """The keyframes of one sampling step and every frame's matches to them.

    Attributes:
        keyframes: Frame numbers, (k,) int64, ascending.
        near: Each frame's two keyframes and weight.
        pairs: The matches, shared with all steps of the same features.
    """

    keyframes: Tensor
    near: Neighbours
    pairs: PairMatches

    def tokens(self, descriptor: Descriptor, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the matches of some frames in their two keyframes.

        Args:
            descriptor: The layers that were searched on.
            frames: Frame numbers, (n,); None for all.

        Returns:
            Past and future token indices, each (n, P).
        """
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

    Attributes:
        features: The source features they were searched on.
        steps: One `StepMatches` for each of the S steps of the inversion.
        interval: Frames per keyframe.
        fixed: Whether all steps share their keyframes.
        backend: The search that was used.
        shots: The first frame of each shot, ascending from 0.

    Raises:
        ValueError: If the number of steps is not the inversion's.
    """

    features: SourceFeatures
    steps: tuple[StepMatches, ...]
    interval: int
    fixed: bool
    backend: str
    shots: tuple[int, ...] = ONE_SHOT

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.features.inversion.sigmas) - 1:
            inverted = len(self.features.inversion.sigmas) - 1
            raise ValueError(
                f"{len(self.steps)} steps of matches for {inverted} steps of inversion"
            )

    def held(self) -> Iterable[Tensor]:
        matches = (
            tensor
            for step in self.steps
            for tensor in (step.keyframes, *step.near.held(), *step.pairs.held())
        )
        return *self.features.held(), *matches

    def tokens(self, step: int, layer: str, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the matches of some frames for a self-attention layer of the model at a step.

        Args:
            step: Step of the inversion, from 0.
            layer: The layer's path.
            frames: Frame numbers, (n,); None for all.

        Returns:
            Past and future token indices, each (n, P).
        """
        return self.steps[step].tokens(self.features.matched_by[layer], frames)


def carry(
    keyframes: Tensor, near: Neighbours, tokens: tuple[Tensor, Tensor], grid: tuple[int, int]
) -> Tensor:
    """Makes frames of their two keyframes' patches, as equation 6 makes tokens.

    For latents, features and images.

    Args:
        keyframes: (k, C, h, w).
        near: The frames' positions in `keyframes`, and their weights, (n,).
        tokens: Past and future token indices, each (n, P).
        grid: Rows and columns of the P tokens; a token covers a square patch, cut off at the right
            and the bottom where the picture ends.

    Returns:
        (n, C, h, w), in the dtype of `keyframes`.

    Examples:
        A frame halfway between two keyframes of two patches takes the patches that it matches:

        >>> keyframes = torch.tensor([[0.0, 1.0], [10.0, 20.0]]).reshape(2, 1, 1, 2)
        >>> near = Neighbours(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]))
        >>> tokens = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
        >>> carry(keyframes, near, tokens, grid=(1, 2)).tolist()
        [[[[10.0, 5.5]]]]
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
