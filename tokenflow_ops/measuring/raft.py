"""RAFT (Teed and Deng 2020, arXiv 2003.12039) as torchvision ships it.

It is optical flow by a trained network, for whoever has its weights.
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
    """Makes torchvision's large or small RAFT with its weights, float32, on the CPU.

    Args:
        weights: By name, as torchvision saves them.

    Returns:
        The network, for `raft_flow`.

    Raises:
        ValueError: For weights of neither.
        LibraryError: If torchvision is missing or broken.
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
    """Finds the optical flow between two images.

    Borders are repeated up to a size that the network takes: a multiple of 8 and at least 128.

    Args:
        model: Made by `load_raft`.
        first: (3, h, w) in [0, 1], on the model's device.
        second: (3, h, w) in [0, 1], where the flow goes to, on the same device.

    Returns:
        (2, h, w) x and y in pixels.
    """
    height, width = first.shape[1:]
    extra = [max(SMALLEST, -(-side // STRIDE) * STRIDE) - side for side in (width, height)]
    left, top = (side // 2 for side in extra)
    pair = torch.stack([first, second]) * 2 - 1
    pair = F.pad(pair, (left, extra[0] - left, top, extra[1] - top), mode="replicate")
    flow: Tensor = model(pair[:1], pair[1:])[-1][0]  # refined twelve times, the last is the best
    return flow[:, top : top + height, left : left + width]


def raft_memory(height: int, width: int) -> int:
    """Estimates how many bytes one `raft_flow` needs at most.

    They are for every cell of 8 x 8 pixels against every other, and for the encoders.

    Args:
        height: Rows of the images, in pixels.
        width: Columns of the images, in pixels.

    Returns:
        An upper estimate in bytes.
    """
    height, width = max(height, SMALLEST), max(width, SMALLEST)
    cells = height * width // STRIDE**2
    correlation = 10 * cells**2  # float32: the products, their scaled copy and its three halvings
    return correlation + 1000 * height * width
