"""The choices of the method's public code (omerbt/TokenFlow, commit 5dd6a69) where they differ from
ours, for comparison.

Frames are cut into chunks of `interval` frames with one random keyframe each. The public code drops
the frames beyond the last whole chunk; here they form a shorter chunk with a keyframe of its own,
by the same rules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..keyframes import Neighbours
from ..matching.search import nearest_tokens


def chunk_neighbours(frames: int, interval: int) -> Neighbours:
    """Every frame's own chunk's keyframe (as `future`) and the previous chunk's (as `past`), never
    the next one's.

    weight of the own one: sigmoid(d2 / (d1 + d2)) with d1 and d2 the distances to the own and the
    previous chunk's *centre* (its first frame + interval // 2), not to the keyframes; 0.62 to 0.73
    for an interval of 8. Frames of chunk 0 have one keyframe.
    """
    index = torch.arange(frames)
    own = index // interval
    previous = (own - 1).clamp(min=0)
    to_own, to_previous = (
        (index - (chunk * interval + interval // 2)).abs() for chunk in (own, previous)
    )
    weight = torch.sigmoid(to_previous / (to_own + to_previous).clamp(min=1))
    return Neighbours(previous, own, torch.where(own == previous, torch.ones(frames), weight))


def match_to_keyframes(
    features: Tensor, keyframes: Tensor, past: Tensor, future: Tensor, backend: str = "torch"
) -> tuple[Tensor, Tensor]:
    """For every token of every frame the closest token of its past and of its future keyframe; even
    a keyframe searches for itself.

    features: (n, P, C) of the frames. keyframes: (k, P, C) of the keyframes. past, future: (n,)
    positions among them. Returns: past and future token indices, each (n, P) int64.
    """

    def search(side: Tensor) -> Tensor:
        found = torch.empty(features.shape[:2], dtype=torch.int64, device=features.device)
        for position in side.unique().tolist():
            users = (side == position).to(features.device)
            found[users] = nearest_tokens(features[users], keyframes[position], backend)
        return found

    own = search(future)
    return (own, own) if torch.equal(past, future) else (search(past), own)
