"""Builds a clip's correspondences for every sampling step from its source features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..baselines.public_code import chunk_neighbours
from ..features.descriptors import Descriptor
from ..features.source_features import SourceFeatures
from ..keyframes import ONE_SHOT, Neighbours, choose_keyframes, interval_starts, neighbours
from .correspondence import Correspondences, PairMatches, StepMatches, index_type
from .fastest import Backends, Timings
from .search import release_scratch, search_window

# Frames whose features are held at once, and bytes of descriptors that are searched at once.
BLOCK_FRAMES, QUERY_BYTES = 64, 64 << 20
BLENDS = (
    "nearest",
    "nearest, sigmoid",
    "own and previous chunk, sigmoid",
    "nearest, by likeness",
)
BY_LIKENESS = BLENDS[3]


def blend_of(
    blend: str,
    frames: int,
    keyframes: Tensor,
    interval: int,
    starts: Tensor | None = None,
    shots: Sequence[int] = ONE_SHOT,
) -> Neighbours:
    """Finds which two keyframes every frame follows, and how much.

    "nearest" is ours, then the paper's weights, then the public code's rule. "by likeness" it is as
    well how alike a token is to its two matches, see `StepMatches.weight`.

    Args:
        blend: One of BLENDS.
        frames: N, the number of frames.
        keyframes: Frame numbers, (k,), ascending, one in each interval.
        interval: Frames of a usual interval.
        starts: The first frame of each interval, (k,); None for even ones.
        shots: The first frame of each shot. The public code knows nothing of shots.

    Returns:
        The two keyframes and the weight of each of the N frames.

    Raises:
        ValueError: For another blend.
    """
    if blend == BLENDS[2]:
        return chunk_neighbours(frames, interval, starts)
    if blend not in BLENDS:
        raise ValueError(f"blend must be one of {BLENDS}, got {blend!r}")
    return neighbours(frames, keyframes, blend == BLENDS[1], shots)


def build_correspondences(
    features: SourceFeatures,
    interval: int = 8,
    seed: int = 0,
    fixed: bool = False,
    backend: str = "auto",
    window: int = 0,
    device: torch.device | str = "cpu",
    on_pairs: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
    blend: str = BY_LIKENESS,
    timings: Timings | None = None,
    shots: Sequence[int] = ONE_SHOT,
    given: Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
) -> Correspondences:
    """Draws the keyframes of every step and matches every frame's tokens to its two nearest ones.

    Args:
        features: The source's, on which frames are matched.
        interval: Frames per keyframe.
        seed: Another seed draws other keyframes.
        fixed: Whether the keyframes are the same at every step (the paper's ablation), instead of
            new random ones.
        backend: "faiss", "torch", or "auto": the faster one for each shape of work, by `timings`.
        window: How many tokens of the whole-frame grid a match may be away in each direction, on
            every layer in proportion; 0 for no limit.
        device: Where the search runs.
        on_pairs: Called with how many pairs of frame and keyframe are searched, and how
            many there are.
        check: Called before every search; may raise to stop.
        blend: One of BLENDS, see `blend_of`.
        timings: How fast each backend is; what they lack is measured and added.
        shots: The first frame of each shot, see `find_cuts`; nothing is matched across them.
        given: The frame numbers of the keyframes of every step, ascending, some in each shot;
            None to draw them. `interval`, `seed` and `fixed` count for nothing then.
        starts: The first frame of each interval, ascending from 0, some in each shot, as of
            `intervals_by_content`; None for even ones.

    Returns:
        The clip's matches for all steps.

    Raises:
        ValueError: If the features hold NaN or infinite values, if FAISS is asked for together with
            a window, or for an unknown `blend` or `backend` or an `interval` below 1.
        LibraryError: If FAISS is asked for and missing or broken.
    """
    if window > 0 and backend == "faiss":
        raise ValueError("FAISS searches the whole frame: use the torch backend with a window")
    frames, steps = features.inversion.frames, len(features.inversion.sigmas) - 1
    if given is not None:
        fixed, starts = True, (0, *given[1:])
        interval = max(after - before for before, after in pairwise((*starts, frames)))
        keyframes = [torch.tensor(list(given))] * steps
    intervals = interval_starts(frames, interval, shots) if starts is None else torch.tensor(starts)
    if given is None:
        keyframes = [
            choose_keyframes(frames, interval, seed, 0 if fixed else step, intervals)
            for step in range(steps)
        ]
    near = [blend_of(blend, frames, drawn, interval, intervals, shots) for drawn in keyframes]
    levels = [features.nearest_step(step) for step in range(steps)]
    matches = {
        level: _empty(
            features,
            blend == BY_LIKENESS,
            [
                keyframes[step][side]
                for step in range(steps)
                if levels[step] == level
                for side in _sides(near[step])
            ],
        )
        for level in features.steps
    }
    search = _Search(
        features,
        Backends("torch" if window > 0 and backend == "auto" else backend, device, timings),
        window,
        device,
        check,
    )
    done, total = 0, sum(len(part.pairs) for part in matches.values())

    def consume(block: range, loaded: range, level: int, layers: dict[str, Tensor]) -> None:
        nonlocal done
        for layer, tensor in layers.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"NaN or infinite features in layer {layer} at step {level}")
        whole = matches[level]
        for rows, found in search.nearest(whole, block, loaded, layers):
            for descriptor, (tokens, likeness) in found.items():
                whole.tokens[descriptor][rows] = tokens
                if whole.likeness is not None:
                    whole.likeness[descriptor][rows] = likeness
            done += len(rows)
            on_pairs(done, total)

    try:
        for block, loaded in _blocks([*intervals.tolist(), frames]):
            features.stream(
                torch.arange(loaded.start, loaded.stop), partial(consume, block, loaded)
            )
    finally:
        release_scratch()
    found = (
        StepMatches(keyframes[step], near[step], matches[levels[step]]) for step in range(steps)
    )
    backends = str(search.backends)
    begins = tuple(intervals.tolist())
    return Correspondences(features, tuple(found), interval, begins, fixed, backends, tuple(shots))


def _sides(near: Neighbours) -> tuple[Tensor, Tensor]:
    return near.past, near.future


def _empty(features: SourceFeatures, alike: bool, keyframes: list[Tensor]) -> PairMatches:
    """Room for the matches of all frames to these keyframes, each (N,)."""
    frames = features.inversion.frames
    pairs = torch.cat([torch.arange(frames) * frames + drawn for drawn in keyframes]).unique()
    sizes = {descriptor: features.tokens(descriptor) for descriptor in features.descriptors}
    tokens = {
        name: torch.empty(len(pairs), size, dtype=index_type(size)) for name, size in sizes.items()
    }
    likeness = {name: torch.empty(len(pairs), size) for name, size in sizes.items()}
    return PairMatches(frames, pairs, tokens, likeness if alike else None)


def _blocks(borders: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Blocks of whole intervals, and with each the frames in which their keyframes may lie.

    These reach an interval further on both sides.

    borders: Of intervals, from 0 to the number of frames.
    """
    first, last = 0, len(borders) - 1
    while first < last:
        stop = first + 1
        while stop < last and borders[stop + 1] - borders[first] <= BLOCK_FRAMES:
            stop += 1
        loaded = range(borders[max(0, first - 1)], borders[min(last, stop + 1)])
        yield range(borders[first], borders[stop]), loaded
        first = stop


class _Search:
    """Searches one block of frames after the other."""

    def __init__(
        self,
        features: SourceFeatures,
        backends: Backends,
        window: int,
        device: torch.device | str,
        check: Callable[[], None],
    ) -> None:
        self.features, self.backends, self.device, self.check = features, backends, device, check

        @cache
        def allowed(grid: tuple[int, int]) -> Tensor | None:
            height = features.inversion.latents.shape[-2]
            inside = search_window(*grid, -(-window * grid[0] // height) if window else 0)
            return None if inside is None else inside.to(device)

        self.allowed = allowed

    def nearest(
        self, matches: PairMatches, block: range, loaded: range, layers: dict[str, Tensor]
    ) -> Iterator[tuple[Tensor, dict[Descriptor, tuple[Tensor, Tensor]]]]:
        """Searches for a block's pairs in the features of the frames `loaded`.

        Yields: keyframe by keyframe the rows (n,) of its pairs in `matches`, their tokens (n, P)
        and how alike these are (n, P).
        """
        first, last = torch.searchsorted(
            matches.pairs, torch.tensor([block.start, block.stop]) * matches.frames
        ).tolist()
        frames, keyframes = (
            matches.pairs[first:last] // matches.frames,
            matches.pairs[first:last] % matches.frames,
        )
        for keyframe in keyframes.unique().tolist():
            users = (keyframes == keyframe).nonzero().flatten()
            found = {}
            for descriptor in matches.tokens:
                tokens, alike = self._match(
                    descriptor,
                    frames[users] - loaded.start,
                    keyframe - loaded.start,
                    layers,
                )
                # Even where two of its own tokens are equal.
                itself = frames[users] == keyframe
                tokens[itself] = torch.arange(tokens.shape[1], dtype=tokens.dtype)
                found[descriptor] = tokens, alike
            yield first + users, found

    def _match(
        self,
        descriptor: Descriptor,
        frames: Tensor,
        keyframe: int,
        layers: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Tokens of one keyframe that those of some frames match, and how alike these are.

        Frames are counted among the features' rows. Returns: (n, P) each.
        """
        described = self._describe(descriptor, torch.tensor([keyframe]), layers)
        most = max(1, QUERY_BYTES // (described.numel() * 4))
        window = self.allowed(self.features.grid(descriptor))
        found, alike = [], []
        for part in frames.split(most):
            self.check()
            queries = self._describe(descriptor, part, layers)
            tokens = self.backends.nearest(queries, described[0], window)
            found.append(tokens.cpu())
            cosine = F.cosine_similarity(queries.float(), described[0].float()[tokens], dim=-1)
            alike.append(cosine.cpu())
        return torch.cat(found).to(index_type(described.shape[1])), torch.cat(alike)

    def _describe(
        self, descriptor: Descriptor, frames: Tensor, layers: dict[str, Tensor]
    ) -> Tensor:
        parts = {
            layer: layers[layer][frames.to(layers[layer].device)].to(self.device)
            for layer in descriptor
        }
        return self.features.describe(parts, descriptor)
