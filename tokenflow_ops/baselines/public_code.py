"""The choices of the method's public code where they differ from ours, for comparison.

The public code is omerbt/TokenFlow, commit 5dd6a69. Frames are cut into chunks of `interval` frames
with one random keyframe each. The public code drops the frames beyond the last whole chunk; here
they form a shorter chunk with a keyframe of its own, by the same rules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..keyframes import Neighbours, interval_starts
from ..matching.search import nearest_tokens


def chunk_neighbours(frames: int, interval: int, starts: Tensor | None = None) -> Neighbours:
    """Gives every frame the keyframes of its own and of the previous chunk, never the next one's.

    The own one is `future`, the previous one `past`. The weight of the own one is sigmoid(d2 / (d1
    + d2)) with d1 and d2 the distances to the own and the previous chunk's *centre* (its first
    frame + interval // 2), not to the keyframes; 0.62 to 0.73 for an interval of 8. Frames of chunk
    0 have one keyframe.

    Args:
        frames: N, the number of frames.
        interval: Frames in a chunk.
        starts: The first frame of each chunk, (k,) int64, ascending from 0, where chunks are not
            even; of longer ones the centre is half their length in.

    Returns:
        The two keyframes and the weight of each of the N frames.
    """
    starts = interval_starts(frames, interval) if starts is None else starts
    lengths = starts.diff(append=torch.tensor([frames]))
    centres = starts + lengths.clamp(min=interval) // 2
    index = torch.arange(frames)
    own = torch.searchsorted(starts, index, right=True) - 1
    previous = (own - 1).clamp(min=0)
    to_own, to_previous = ((index - centres[chunk]).abs() for chunk in (own, previous))
    weight = torch.sigmoid(to_previous / (to_own + to_previous).clamp(min=1))
    return Neighbours(previous, own, torch.where(own == previous, torch.ones(frames), weight))


def match_to_keyframes(
    features: Tensor, keyframes: Tensor, past: Tensor, future: Tensor, backend: str = "torch"
) -> tuple[Tensor, Tensor]:
    """Finds for every token the closest token of its frame's past and of its future keyframe.

    Even a keyframe searches for itself.

    Args:
        features: Of the frames, (n, P, C).
        keyframes: Features of the keyframes, (k, P, C).
        past: Positions of the past keyframes among them, (n,).
        future: Positions of the future keyframes among them, (n,).
        backend: "faiss" or "torch".

    Returns:
        Past and future token indices, each (n, P) int64.

    Raises:
        ValueError: For an unknown backend.
        LibraryError: If FAISS is asked for and missing, or fails.
    """

    def search(side: Tensor) -> Tensor:
        found = torch.empty(features.shape[:2], dtype=torch.int64, device=features.device)
        for position in side.unique().tolist():
            users = (side == position).to(features.device)
            found[users] = nearest_tokens(features[users], keyframes[position], backend)
        return found

    own = search(future)
    return (own, own) if torch.equal(past, future) else (search(past), own)
