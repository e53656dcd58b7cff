"""TokenFlow (Geyer et al., ICLR 2024, arXiv 2307.10373) as a library in plain torch.

It knows neither ComfyUI nor any other host. The method's own functions and classes are here;
`tokenflow_ops.scripting` edits a clip with a diffusers pipeline.

Shapes used throughout: N frames, k keyframes, S sampling steps, P tokens of width C in a
self-attention layer.
"""

from .attention import extended_attention, join_frames, split_frames
from .features.descriptors import Descriptor
from .features.source_features import SourceFeatures
from .features.stores import DiskStore, FeatureStore, MemoryStore
from .injection import Injection
from .inversion import Inversion, invert
from .keyframes import (
    JOINT_KEYFRAMES,
    Neighbours,
    Windows,
    attended_keyframes,
    choose_keyframes,
    neighbours,
    spread,
)
from .matching.build import build_correspondences
from .matching.correspondence import Correspondences, PairMatches, StepMatches, carry
from .matching.search import nearest_tokens
from .propagation import ATTENTION, CARRY_UNTIL, DEEP_FEATURES, PROPAGATIONS, propagate

__all__ = [
    "ATTENTION",
    "CARRY_UNTIL",
    "DEEP_FEATURES",
    "JOINT_KEYFRAMES",
    "PROPAGATIONS",
    "Correspondences",
    "Descriptor",
    "DiskStore",
    "FeatureStore",
    "Injection",
    "Inversion",
    "MemoryStore",
    "Neighbours",
    "PairMatches",
    "SourceFeatures",
    "StepMatches",
    "Windows",
    "attended_keyframes",
    "build_correspondences",
    "carry",
    "choose_keyframes",
    "extended_attention",
    "invert",
    "join_frames",
    "nearest_tokens",
    "neighbours",
    "propagate",
    "split_frames",
    "spread",
]
