"""What happens in the UNet's self-attention and ResBlocks during one pass over some of the frames."""

from .base import DEEP, PASS_KEY, AttentionCall, Bank, CapturePass, DeepCall, Pass
from .blending import BlendedPass, SourceMapsPass
from .cross_frame import SparseCausalPass
from .joint import JointPass, KeyframePass
from .propagation import PropagationPass
from .reference import SourceKeyframePass, SourceMatchPass

__all__ = [
    "DEEP",
    "PASS_KEY",
    "AttentionCall",
    "Bank",
    "BlendedPass",
    "CapturePass",
    "DeepCall",
    "JointPass",
    "KeyframePass",
    "Pass",
    "PropagationPass",
    "SourceKeyframePass",
    "SourceMapsPass",
    "SourceMatchPass",
    "SparseCausalPass",
]
