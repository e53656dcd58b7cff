"""Correspondences between the source's frames and its keyframes: gamma^{i->k} (paper, equations 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import SourceFeatures
from .keyframes import Neighbours
from .propagation import propagate
from .search import nearest_tokens


def match_frames(
    features: Tensor,
    keyframes: Tensor,
    near: Neighbours,
    backend: str = "torch",
    window: Tensor | None = None,
    device: torch.device | str | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """For every token of every frame the closest token of the frame's past and of its future keyframe.

    features: (N, P, C) of one layer and step. keyframes: (k,) frame numbers. near: the frames' neighbours among them.
    backend, window: see `nearest_tokens`. check: called before every search; may raise to stop.
    device: where to search, None for where the features are; one keyframe and its frames go there at a time.
    Returns: past and future token indices, each (N, P) on the CPU, int16 where P allows, else int32. A keyframe maps onto itself.
    """
    frames, tokens, _ = features.shape
    device = features.device if device is None else device
    dtype = torch.int16 if tokens <= torch.iinfo(torch.int16).max else torch.int32
    past = torch.empty(frames, tokens, dtype=dtype)
    future = torch.empty(frames, tokens, dtype=dtype)
    for position, keyframe in enumerate(keyframes.tolist()):
        check()
        follows_past, follows_future = near.past == position, near.future == position
        users = (follows_past | follows_future).nonzero().flatten()
        queries = features[users.to(features.device)].to(device)
        found = nearest_tokens(queries, features[keyframe].to(device), backend, window).to("cpu", dtype)
        found[users == keyframe] = torch.arange(tokens, dtype=dtype)  # even where two of its own tokens are equal
        past[follows_past] = found[follows_past[users]]
        future[follows_future] = found[follows_future[users]]
    return past, future


@dataclass(frozen=True)
class StepMatches:
    """The keyframes of one sampling step and every frame's matches to them.

    keyframes: (k,) int64 frame numbers, ascending. near: each frame's two keyframes and weight.
    tokens: for every match layer (past, future) token indices, each (N, P) integer.
    """

    keyframes: Tensor
    near: Neighbours
    tokens: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Correspondences:
    """The matches of a clip for every sampling step, with the keyframe schedule they belong to.

    features: the source features they were searched on. steps: one `StepMatches` for each of the S steps of the inversion.
    interval: frames per keyframe. fixed: whether all steps share their keyframes. backend: the search that was used.
    Raises: ValueError if the number of steps is not the inversion's.
    """

    features: SourceFeatures
    steps: tuple[StepMatches, ...]
    interval: int
    fixed: bool
    backend: str

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.features.inversion.sigmas) - 1:
            raise ValueError(f"{len(self.steps)} steps of matches for {len(self.features.inversion.sigmas) - 1} steps of inversion")

    def tokens(self, step: int, layer: str) -> tuple[Tensor, Tensor]:
        """Past and future token indices (N, P) for a self-attention layer of the model at a step."""
        return self.steps[step].tokens[self.features.matched_by[layer]]


def carry(pictures: Tensor, matches: StepMatches, layer: str, grid: tuple[int, int]) -> Tensor:
    """Every frame made of its two keyframes' patches, as equation 6 makes tokens: for latents and images instead of features.

    pictures: (N, C, h, w). grid: rows and columns of the layer's tokens; a token covers a square patch, cut off at the right and the bottom
    where the picture ends. Returns: like pictures; a keyframe is its own.
    """
    rows, columns = grid
    height, width = pictures.shape[2:]
    patch = max(-(-height // rows), -(-width // columns))
    whole = F.pad(pictures, (0, columns * patch - width, 0, rows * patch - height), mode="replicate")
    tokens = F.pixel_unshuffle(whole, patch).flatten(2).transpose(1, 2)  # (N, P, C * patch ** 2)
    near, (past, future) = matches.near, matches.tokens[layer]
    sides = (part.to(pictures.device) for part in (near.past, near.future, near.weight, past, future))
    carried = propagate(tokens[matches.keyframes.to(pictures.device)], *sides)
    return F.pixel_shuffle(carried.transpose(1, 2).unflatten(2, grid), patch)[..., :height, :width]


def rebuild(images: Tensor, matches: StepMatches, layer: str, grid: tuple[int, int]) -> Tensor:
    """Every frame rebuilt from its keyframes' patches by the matches, to see how good they are.

    images: (N, 3, h, w) in [0, 1], h and w at least the grid's. grid: rows and columns of the layer's tokens.
    Returns: (N, 3, rows * patch, columns * patch) with patch the whole pixels of a token.
    """
    rows, columns = grid
    patch = max(1, min(images.shape[2] // rows, images.shape[3] // columns))
    size = (rows * patch, columns * patch)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="area")
    return carry(images, matches, layer, grid)
