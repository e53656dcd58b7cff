"""What the method sees of a clip, as numbers for pictures.

They are features, frames rebuilt, how alike matched tokens are and how they move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.descriptors import Descriptor
from ..features.source_features import SourceFeatures
from ..keyframes import Neighbours, spread
from ..libraries import library
from ..matching.correspondence import StepMatches, carry

# Principal components are found on about so many tokens, of at most so many frames; the features of
# as many are held at once.
SAMPLED_TOKENS, BLOCK_FRAMES = 4096, 64
# Frames whose matches are compared at once: each may need two keyframes more.
COMPARED_FRAMES = 16
# Share of the moving tokens that go no farther than what has the fullest colour, and on how many it
# is found.
FARTHEST, SAMPLED_MOVES = 0.95, 1 << 20

# Called after every frame; may raise to stop the work.
Done = Callable[[], None]


def ignore() -> None:
    """Counts nothing."""


@dataclass(frozen=True)
class ColourBasis:
    """The first principal components of features.

    One basis serves all frames, so that colours can be compared.

    Attributes:
        mean: Of the features, (C,).
        axes: (c, C) of length one, c the smaller of 3 and C.
        low: What is shown as dark, (c,).
        high: What is shown as bright, (c,).
    """

    mean: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, sample: Tensor) -> ColourBasis:
        """Finds the basis of some tokens of all frames, (n, C)."""
        sample = sample.float()
        mean = sample.mean(0)
        sample = sample - mean
        _, axes = torch.linalg.eigh(sample.T @ sample)  # ascending
        axes = axes.T.flip(0)[:3]
        # The sign of a component is arbitrary. It is fixed, so that the same clip always has
        # the same colours.
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        low, high = (sample @ axes.T).quantile(torch.tensor([0.02, 0.98], device=sample.device), 0)
        return cls(mean, axes, low, high)

    def colours(self, tokens: Tensor) -> Tensor:
        """Returns red, green and blue of tokens (P, C): (P, 3) float32 in [0, 1].

        Without a third component blue repeats the first.
        """
        parts = (tokens.float() - self.mean) @ self.axes.T
        scaled = ((parts - self.low) / (self.high - self.low).clamp(min=1e-8)).clamp(0, 1)
        return torch.cat([scaled, scaled[:, :1].expand(-1, 3 - scaled.shape[1])], 1)


def principal_colours(features: Callable[[int], Tensor], frames: int) -> Tensor:
    """Shows the first three principal components of what every frame has as colours.

    Args:
        features: Gives a frame's (P, C) by its number.
        frames: N, the number of frames.

    Returns:
        (N, P, 3) float32 in [0, 1].
    """
    basis = ColourBasis.of(_sample((features(i) for i in range(frames)), frames))
    return torch.stack([basis.colours(features(i)) for i in range(frames)])


def feature_colours(
    features: SourceFeatures, descriptor: Descriptor, step: int, frames: Tensor, done: Done = ignore
) -> Tensor:
    """Shows the first three principal components of a descriptor's features at a step as colours.

    The features are stored, or computed now.

    Args:
        features: The source's.
        descriptor: The layers whose features are shown.
        step: Step of the inversion.
        frames: Frame numbers, (n,).
        done: Called after every frame; may raise to stop.

    Returns:
        (n, 3, rows, columns) float32 in [0, 1].
    """
    blocks = frames.split(BLOCK_FRAMES)
    few = frames if len(blocks) == 1 else frames[spread(len(frames), BLOCK_FRAMES)]
    layers = features.at(step, descriptor, few)
    basis = ColourBasis.of(_sample(_described(features, descriptor, layers), len(few)))
    found = []
    for block in blocks:
        if len(blocks) > 1:
            layers = features.at(step, descriptor, block)
        for tokens in _described(features, descriptor, layers):
            found.append(basis.colours(tokens).cpu())
            done()
    return torch.stack(found).transpose(1, 2).unflatten(2, features.grid(descriptor))


def _described(
    features: SourceFeatures, descriptor: Descriptor, layers: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    """A descriptor's features frame by frame, (P, C).

    Those of all at once would be held many times over.
    """
    for rows in zip(*(layers[layer].split(1) for layer in descriptor), strict=True):
        yield features.describe(dict(zip(descriptor, rows, strict=True)), descriptor)[0]


def _sample(features: Iterator[Tensor], frames: int) -> Tensor:
    """Tokens spread over all frames, (n, C) float32, from each frame's (P, C)."""
    found = []
    for i, tokens in enumerate(features):
        every = max(1, frames * len(tokens) // SAMPLED_TOKENS)
        found.append(tokens[i % every :: every].float())
    return torch.cat(found)


def rebuild(
    images: Callable[[Tensor], Tensor],
    matches: StepMatches,
    descriptor: Descriptor,
    grid: tuple[int, int],
    frames: Tensor,
    done: Done = ignore,
) -> Tensor:
    """Rebuilds frames from their keyframes' patches by the matches, blended as tokens are.

    So one sees what propagation can carry and what it cannot.

    Args:
        images: Gives frames (n, 3, h, w) in [0, 1] by their numbers (n,), h and w at least the
            grid's. It is asked once, for the keyframes that are needed.
        matches: Of one step.
        descriptor: The layers whose matches are taken.
        grid: Rows and columns of the descriptor's tokens.
        frames: Frame numbers, (n,).
        done: Called after every frame; may raise to stop.

    Returns:
        (n, 3, rows * patch, columns * patch) with patch the whole pixels of a token.
    """
    rows, columns = grid
    near = matches.near.of(frames)
    used, places = torch.cat([near.past, near.future]).unique(return_inverse=True)
    keyframes = images(matches.keyframes[used])
    patch = max(1, min(keyframes.shape[2] // rows, keyframes.shape[3] // columns))
    size = (rows * patch, columns * patch)
    if keyframes.shape[2:] != size:
        keyframes = F.interpolate(keyframes, size, mode="area")
    rebuilt = torch.empty(len(frames), *keyframes.shape[1:])
    pairs = places.view(2, -1).T
    # One by one: all at once would hold each of them several times.
    for i, frame in enumerate(frames.split(1)):
        rebuilt[i] = carry(
            keyframes[pairs[i]],
            Neighbours(torch.tensor([0]), torch.tensor([1]), near.weight[i : i + 1]),
            matches.tokens(descriptor, frame),
            grid,
            matches.weight(descriptor, frame),
        )[0]
        done()
    return rebuilt


def match_similarity(
    features: SourceFeatures,
    matches: StepMatches,
    descriptor: Descriptor,
    step: int,
    frames: Tensor,
    done: Done = ignore,
) -> Tensor:
    """Measures how sure matches are: how alike every token's features and its matches' are.

    It is their cosine, the two keyframes weighted as in the blend. Of what can be told without
    knowing the motion it finds wrong matches best (bench/quality/confidence.py).

    Args:
        features: The source's.
        matches: Of the step.
        descriptor: The layers whose features are compared.
        step: Step of the inversion.
        frames: Frame numbers, (n,).
        done: Called after every frame; may raise to stop.

    Returns:
        (n, rows, columns) float32 up to 1, which keyframes have and tokens with the same features.
    """
    level, found = features.nearest_step(step), []
    for block in frames.split(COMPARED_FRAMES):
        near = matches.near.of(block)
        sides = [matches.keyframes[side] for side in (near.past, near.future)]
        loaded = torch.cat([block, *sides]).unique()
        described = _describer(features, descriptor, features.at(level, descriptor, loaded), loaded)
        for i, frame in enumerate(block.tolist()):
            pair = zip(sides, matches.tokens(descriptor, block[i : i + 1]), strict=True)
            past, future = (
                F.cosine_similarity(
                    described(frame),
                    described(int(side[i]))[tokens[0].long().to(described(frame).device)],
                    dim=-1,
                )
                for side, tokens in pair
            )
            found.append(torch.lerp(past, future, float(near.weight[i])).cpu())
            done()
    return torch.stack(found).unflatten(1, features.grid(descriptor))


def _describer(
    features: SourceFeatures, descriptor: Descriptor, layers: Mapping[str, Tensor], loaded: Tensor
) -> Callable[[int], Tensor]:
    """Gives a frame's (P, C) float32 from the rows of the frames `loaded`.

    Keeps the last few: neighbouring frames share their keyframes.
    """

    @lru_cache(maxsize=3)
    def described(frame: int) -> Tensor:
        row = int(torch.searchsorted(loaded, frame))
        return features.describe(
            {layer: layers[layer][row : row + 1] for layer in descriptor}, descriptor
        )[0].float()

    return described


def match_motion(
    matches: StepMatches, descriptor: Descriptor, grid: tuple[int, int], frames: Tensor
) -> Tensor:
    """Tells where matches say that the source moves, forwards in time.

    It is the motion between a frame and the keyframe that counts most in its blend.

    Args:
        matches: Of one step.
        descriptor: The layers whose matches are taken.
        grid: Rows and columns of the descriptor's tokens.
        frames: Frame numbers, (n,).

    Returns:
        (n, 2, rows, columns) x and y in tokens; 0 in keyframes.
    """
    near = matches.near.of(frames)
    past, future = matches.tokens(descriptor, frames)
    later = near.weight >= 0.5
    tokens = torch.where(later[:, None], future, past).long()
    keyframes = matches.keyframes[torch.where(later, near.future, near.past)]
    columns, own = grid[1], torch.arange(tokens.shape[1])
    moved = torch.stack(
        [tokens % columns - own % columns, tokens // columns - own // columns], 1
    ).float()
    return (moved * (keyframes - frames).sign()[:, None, None]).unflatten(2, grid)


def motion_colours(motion: Tensor) -> Tensor:
    """Shows motion as colours: hue is the direction, saturation how far.

    What stands still is white.

    Args:
        motion: (n, 2, h, w), x and y.

    Returns:
        (n, 3, h, w) in [0, 1].

    Raises:
        LibraryError: If kornia is missing or broken.
    """
    length = motion.norm(dim=1)
    moving = length[length > 0]
    moving = moving[:: max(1, len(moving) // SAMPLED_MOVES)]
    farthest = float(moving.quantile(FARTHEST)) if len(moving) else 1.0
    hue = torch.atan2(motion[:, 1], motion[:, 0]) % (2 * torch.pi)
    colours: Tensor = library("kornia").color.hsv_to_rgb(
        torch.stack([hue, (length / farthest).clamp(max=1), torch.ones_like(length)], 1)
    )
    return colours
