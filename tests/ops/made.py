"""Source features of one layer and step, and the matches made of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenflow_ops import Inversion, MemoryStore, SourceFeatures, StepMatches, build_correspondences

FAISS = pytest.mark.skipif(find_spec("faiss") is None, reason="FAISS is not installed")
LAYER = "layer"
ONLY = (LAYER,)


def source_of(features: Tensor, grid: tuple[int, int] | None = None) -> SourceFeatures:
    """features: (N, P, C). grid: of the latents, P tokens in a row if None."""
    frames, tokens, width = features.shape
    inversion = Inversion(
        torch.tensor([1.0, 0.0]),
        torch.zeros(2, frames, 4, *(grid or (1, tokens))),
        None,
        "",
        1,
        "normal",
    )
    store = MemoryStore()
    store.put(0, {LAYER: features})
    return SourceFeatures(inversion, {LAYER: (tokens, width)}, {LAYER: ONLY}, (0,), store)


def step_matches(features: Tensor, interval: int, seed: int = 0, **choices: Any) -> StepMatches:
    """The one step's matches. choices: of `build_correspondences`."""
    return build_correspondences(
        source_of(features), interval, seed, **{"backend": "torch", **choices}
    ).steps[0]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
