"""Intervals by content: fewer keyframes where a clip stays much the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ..features.source_features import SourceFeatures
from ..keyframes import ONE_SHOT
from ..shards import ALONE, Shards
from .cuts import moves_along
from .search import nearest_tokens

# So many usual intervals share one keyframe at most.
JOINED = 4
# Two frames show much the same if so many of the tokens that moved, or all but so few, find back to
# where they were. With 0.4 pans of `bench truth` were joined, which costs ground that is new.
ALIKE, FEW = 0.55, 0.05
NEARBY = 1  # places of the grid by which a token may be off


def intervals_by_content(
    features: SourceFeatures,
    interval: int,
    device: torch.device | str = "cpu",
    check: Callable[[], None] = lambda: None,
    shots: Sequence[int] = ONE_SHOT,
    shards: Shards = ALONE,
) -> tuple[int, ...]:
    """Joins even intervals whose first and last frame show much the same.

    A frame can only be made of a keyframe that shows what it shows. Not in the paper, whose
    intervals are even.

    Args:
        features: The source's, on which frames are compared, at the least noisy step that has them.
        interval: Frames of a usual interval.
        device: Where to compare.
        check: Called before every comparison; may raise to stop.
        shots: The first frame of each shot, ascending from 0; intervals begin anew at each.
        shards: The machines that share the clip, which have to find the same.

    Returns:
        The first frame of each interval, ascending from 0.
    """
    seen = _Seen(features, device)
    # The first frame of an interval is compared with several.
    first_tokens = lru_cache(maxsize=1)(seen.tokens)

    def alike(first: int, last: int) -> bool:
        check()
        pair = first_tokens(first), seen.tokens(last)
        return shards.once(lambda: seen.alike(*pair))

    spans = pairwise([*shots, features.inversion.frames])
    return tuple(start for first, stop in spans for start in _joined(first, stop, interval, alike))


def _joined(
    first: int, stop: int, interval: int, alike: Callable[[int, int], bool]
) -> Iterator[int]:
    """The first frames of a shot's intervals. alike: of two frames, whether much is the same."""
    while first < stop:
        yield first
        end, longest = first + interval, min(first + JOINED * interval, stop)
        while end < longest and alike(first, min(end + interval, longest) - 1):
            end += interval
        first = end


class _Seen:
    """What frames show, two of them at a time."""

    def __init__(self, features: SourceFeatures, device: torch.device | str) -> None:
        self.features, self.device = features, device
        self.grid = rows, columns = features.grid(features.finest)
        places = torch.arange(rows * columns, device=device)
        self.places = torch.stack([places // columns, places % columns])

    def tokens(self, frame: int) -> Tensor:
        """A frame's tokens (P, C) at the least noisy step that has features."""
        features, finest = self.features, self.features.finest
        found = features.at(features.steps[-1], finest, torch.tensor([frame]))
        held = {layer: tokens.to(self.device) for layer, tokens in found.items()}
        return features.describe(held, finest)[0]

    def alike(self, one: Tensor, other: Tensor) -> bool:
        """Whether each of two frames (P, C) could be made of the other one.

        A token's match in the other frame should match the token itself, and lie beside those of
        its neighbours. Tokens that stay where they are say nothing: a still ground holds, whatever
        moves on it.
        """
        there, back = nearest_tokens(one[None], other)[0], nearest_tokens(other[None], one)[0]
        return all(self._found(*ways) for ways in ((there, back), (back, there)))

    def _found(self, there: Tensor, back: Tensor) -> bool:
        moved, returned = self._moved(there), self._moved(back[there])
        kept = (returned.abs().amax(0) <= NEARBY) & moves_along(moved)
        stayed = kept & (moved.abs().amax(0) <= NEARBY)
        lost, moves = float((~kept).float().mean()), float((kept & ~stayed).float().mean())
        return lost <= FEW or moves >= ALIKE * (lost + moves)

    def _moved(self, tokens: Tensor) -> Tensor:
        """By how many rows and columns each place's token is another one, (2, rows, columns)."""
        return (self.places[:, tokens] - self.places).unflatten(1, self.grid)
