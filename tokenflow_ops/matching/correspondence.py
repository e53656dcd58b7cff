"""Correspondences between the source's frames and its keyframes (paper, equations 3 and 4).

The paper calls them gamma^{i->k}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.descriptors import Descriptor
from ..features.source_features import SourceFeatures
from ..keyframes import ONE_SHOT, Neighbours
from ..propagation import propagate
from ..storage.counted import Counted

# A token follows the keyframe that it is likelier in: by so much more cosine, e times as much.
LIKENESS_SCALE = 0.05


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
        likeness: By descriptor the cosines of tokens and their matches, (M, P) float32; None where
            the blend does not ask for them.
    """

    frames: int
    pairs: Tensor
    tokens: Mapping[Descriptor, Tensor]
    likeness: Mapping[Descriptor, Tensor] | None = None

    def held(self) -> Iterable[Tensor]:
        """Lists its tensors."""
        return self.pairs, *self.tokens.values(), *(self.likeness or {}).values()

    def rows(self, frames: Tensor, keyframes: Tensor) -> Tensor:
        """Finds the pairs of some frames and one keyframe each.

        Args:
            frames: Frame numbers, (n,).
            keyframes: For each frame the frame number of a keyframe, (n,).

        Returns:
            Their positions in `pairs`, (n,).

        Raises:
            KeyError: For a pair that was not asked for.
        """
        wanted = frames * self.frames + keyframes
        rows = torch.searchsorted(self.pairs, wanted).clamp(max=len(self.pairs) - 1)
        if not torch.equal(self.pairs[rows], wanted):
            raise KeyError("frames without matches in these keyframes")
        return rows


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
        past, future = self._rows(frames)
        found = self.pairs.tokens[descriptor]
        first = found[past]
        return first, first if torch.equal(past, future) else found[future]

    def weight(self, descriptor: Descriptor, frames: Tensor | None = None) -> Tensor:
        """Returns how much of each token comes from the future keyframe.

        Without likeness it is the frame's share. With it, s' = 1 / (1 + (1 - w) / w e^(-d / scale))
        with w the frame's share and d by how much the token is more alike its match in the future
        keyframe: what one keyframe does not show comes from the other. Not in the paper.

        Args:
            descriptor: The layers that were searched on.
            frames: Frame numbers, (n,); None for all.

        Returns:
            (n,) float32, or (n, P) with likeness.
        """
        share = self.near.weight if frames is None else self.near.weight[frames]
        if self.pairs.likeness is None:
            return share
        past, future = (self.pairs.likeness[descriptor][rows] for rows in self._rows(frames))
        return torch.sigmoid(torch.logit(share)[:, None] + (future - past) / LIKENESS_SCALE)

    def _rows(self, frames: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where some frames' pairs with their past and future keyframes are, each (n,)."""
        frames = torch.arange(self.pairs.frames) if frames is None else frames
        near = self.near.of(frames)
        past, future = (
            self.pairs.rows(frames, self.keyframes[side]) for side in (near.past, near.future)
        )
        return past, future


@dataclass(frozen=True)
class Correspondences(Counted):
    """The matches of a clip for every sampling step, with the keyframe schedule they belong to.

    Attributes:
        features: The source features they were searched on.
        steps: One `StepMatches` for each of the S steps of the inversion.
        interval: Frames of a usual interval.
        starts: The first frame of each interval, which has one keyframe, ascending from 0.
        fixed: Whether all steps share their keyframes.
        backend: The search that was used.
        shots: The first frame of each shot, ascending from 0.

    Raises:
        ValueError: If the number of steps is not the inversion's.
    """

    features: SourceFeatures
    steps: tuple[StepMatches, ...]
    interval: int
    starts: tuple[int, ...]
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

    def weight(self, step: int, layer: str, frames: Tensor | None = None) -> Tensor:
        """Returns how much of each token of a layer comes from the future keyframe at a step.

        Args:
            step: Step of the inversion, from 0.
            layer: The layer's path.
            frames: Frame numbers, (n,); None for all.

        Returns:
            (n,), or (n, P) where tokens differ in it.
        """
        return self.steps[step].weight(self.features.matched_by[layer], frames)


def carry(
    keyframes: Tensor,
    near: Neighbours,
    tokens: tuple[Tensor, Tensor],
    grid: tuple[int, int],
    weight: Tensor | None = None,
) -> Tensor:
    """Makes frames of their two keyframes' patches, as equation 6 makes tokens.

    For latents, features and images.

    Args:
        keyframes: (k, C, h, w).
        near: The frames' positions in `keyframes`, and their weights, (n,).
        tokens: Past and future token indices, each (n, P).
        grid: Rows and columns of the P tokens; a token covers a square patch, cut off at the right
            and the bottom where the picture ends.
        weight: The future keyframe's share of each token, (n, P), in place of the frames'.

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
    weight = near.weight if weight is None else weight
    sides = (part.to(base.device) for part in (near.past, near.future, weight, *tokens))
    return F.pixel_shuffle(propagate(base, *sides).transpose(1, 2).unflatten(2, grid), patch)[
        ..., :height, :width
    ]
