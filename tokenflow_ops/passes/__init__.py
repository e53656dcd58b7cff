"""What happens in a model's attention and ResBlocks during one pass over some of the frames."""

from .base import DEEP, Bank, CapturePass, Pass
from .blending import BlendedPass, SourceMapsPass
from .calls import AttentionCall, DeepCall, FeatureMismatch, Place, beside
from .cross_frame import SparseCausalPass
from .joint import JointPass, KeyframePass
from .propagation import PropagationPass
from .public_code import SourceKeyframePass, SourceMatchPass

__all__ = [
    "DEEP",
    "AttentionCall",
    "Bank",
    "BlendedPass",
    "CapturePass",
    "DeepCall",
    "FeatureMismatch",
    "JointPass",
    "KeyframePass",
    "Pass",
    "Place",
    "PropagationPass",
    "SourceKeyframePass",
    "SourceMapsPass",
    "SourceMatchPass",
    "SparseCausalPass",
    "beside",
]
