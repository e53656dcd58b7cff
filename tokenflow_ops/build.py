"""Builds a clip's correspondences for every sampling step from its source features."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .correspondence import Correspondences, StepMatches, match_frames
from .fastest import Backends, Timings
from .features import SourceFeatures, token_grid
from .keyframes import Neighbours, choose_keyframes, neighbours
from .reference import chunk_neighbours
from .search import release_scratch, search_window

BLENDS = ("nearest", "nearest, sigmoid", "own and previous chunk, sigmoid")


def blend_of(blend: str, frames: int, keyframes: Tensor, interval: int) -> Neighbours:
    """Which two keyframes every frame follows and how much: "nearest" is ours, then the paper's weights, then the public code's rule.

    keyframes: (k,) ascending frame numbers, one per `interval`. Raises: ValueError for another blend.
    """
    if blend == BLENDS[2]:
        return chunk_neighbours(frames, interval)
    if blend not in BLENDS:
        raise ValueError(f"blend must be one of {BLENDS}, got {blend!r}")
    return neighbours(frames, keyframes, sigmoid=blend == BLENDS[1])


def build_correspondences(
    features: SourceFeatures,
    interval: int = 8,
    seed: int = 0,
    fixed: bool = False,
    backend: str = "auto",
    window: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] = lambda done: None,
    check: Callable[[], None] = lambda: None,
    blend: str = BLENDS[0],
    timings: Timings | None = None,
) -> Correspondences:
    """Draws the keyframes of every step and matches every frame's tokens to its two nearest ones.

    interval: frames per keyframe. fixed: the same keyframes at every step (the paper's ablation) instead of new random ones.
    backend: "faiss", "torch", or "auto": the faster one for each layer's shape, by `timings`; what they lack is measured and added.
    window: how many tokens of the whole-frame grid a match may be away in each direction, on every layer in proportion; 0 for no limit.
    blend: one of BLENDS, see `blend_of`.
    device: where the search runs. on_step: called with the number of steps done. check: called before every search; may raise to stop.
    Raises: ValueError if the features hold NaN or infinite values, or FAISS is asked for together with a window.
    """
    inversion = features.inversion
    steps = len(inversion.sigmas) - 1
    height, width = inversion.latents.shape[-2:]
    keyframes = [choose_keyframes(inversion.frames, interval, seed, 0 if fixed else step) for step in range(steps)]
    found: dict[int, StepMatches] = {}
    if window > 0 and backend == "faiss":
        raise ValueError("FAISS searches the whole frame: use the torch backend with a window")
    backends = Backends("torch" if window > 0 and backend == "auto" else backend, device, timings)

    @cache
    def layer_window(tokens: int) -> Tensor | None:
        rows, columns = token_grid(tokens, height, width)
        allowed = search_window(rows, columns, -(-window * rows // height) if window else 0)
        return None if allowed is None else allowed.to(device)

    def consume(step: int, layers: dict[str, Tensor]) -> None:
        for layer, tensor in layers.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"NaN or infinite features in layer {layer} at step {step}")
        for target in range(steps):
            if features.nearest_step(target) != step:
                continue
            near = blend_of(blend, inversion.frames, keyframes[target], interval)
            tokens = {
                layer: match_frames(tensor, keyframes[target], near, backends.choose(tensor), layer_window(tensor.shape[1]), device, check)
                for layer, tensor in layers.items()
            }
            found[target] = StepMatches(keyframes[target], near, tokens)
            on_step(len(found))

    try:
        features.stream(features.match_layers, consume)
    finally:
        release_scratch()
    return Correspondences(features, tuple(found[step] for step in range(steps)), interval, fixed, str(backends))
