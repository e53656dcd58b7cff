"""RAFT (Teed and Deng 2020, arXiv 2003.12039) as torchvision ships it: optical flow by a trained
network, where its weights are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..libraries import library

# The network works on an eighth of the resolution and halves that three times, down to 2 x 2.
STRIDE = 8
SMALLEST = 128


def load_raft(weights: Mapping[str, Tensor]) -> torch.nn.Module:
    """torchvision's large or small RAFT with its weights, float32, on the CPU.

    Raises: ValueError for those of neither, LibraryError.
    """
    known = library("torchvision").models.optical_flow
    large = "mask_predictor.conv.weight" in weights
    model: torch.nn.Module = (known.raft_large if large else known.raft_small)(weights=None)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise ValueError("not the weights of torchvision's raft_large or raft_small") from error
    return model.train(False).requires_grad_(False)


def raft_flow(model: torch.nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Optical flow from `first` to `second`, (3, h, w) images in [0, 1] on the model's device.

    Borders are repeated up to a size that the network takes: a multiple of 8 and at least 128.
    Returns: (2, h, w) x and y in pixels.
    """
    height, width = first.shape[1:]
    extra = [max(SMALLEST, -(-side // STRIDE) * STRIDE) - side for side in (width, height)]
    left, top = (side // 2 for side in extra)
    pair = torch.stack([first, second]) * 2 - 1
    pair = F.pad(pair, (left, extra[0] - left, top, extra[1] - top), mode="replicate")
    flow: Tensor = model(pair[:1], pair[1:])[-1][0]  # refined twelve times, the last is the best
    return flow[:, top : top + height, left : left + width]


def raft_memory(height: int, width: int) -> int:
    """An upper estimate in bytes of what one `raft_flow` needs: every cell of 8 x 8 pixels against
    every other, and the encoders.
    """
    height, width = max(height, SMALLEST), max(width, SMALLEST)
    cells = height * width // STRIDE**2
    correlation = 10 * cells**2  # float32: the products, their scaled copy and its three halvings
    return correlation + 1000 * height * width
