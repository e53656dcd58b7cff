"""Constraints on the denoised frames themselves (Rerender-A-Video, section 4.1).

They take colours and contents of the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measuring.metrics import dis_flow, warp

# Pixels around an occluded one that are not trusted either: 9 x 9 with it.
OCCLUSION_WINDOW = 9


@dataclass(frozen=True)
class FirstFrameMotion:
    """Where the latent pixels of every frame but the first lay in the first one.

    Attributes:
        positions: In the flattened first frame, (N - 1, h * w) int64.
        visible: Whether they were to be seen there, (N - 1, h * w) bool.
    """

    positions: Tensor
    visible: Tensor


def motion_from_first(frames: Tensor, size: tuple[int, int]) -> FirstFrameMotion:
    """Finds the motion between the source's first frame and each other one, at the latents' size.

    By optical flow (DIS).

    Args:
        frames: (N, 3, H, W) in [0, 1].
        size: h and w of the latents.

    Returns:
        Where the latent pixels lay in the first frame, and whether they were visible there.

    Raises:
        LibraryError: If OpenCV or kornia is missing or broken.
    """
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    scale = torch.tensor([width / frames.shape[3], height / frames.shape[2]])[:, None, None]
    positions, visible = [], []
    for frame in frames[1:]:
        there, back = dis_flow(frame, frames[0]), dis_flow(frames[0], frame)
        moved = F.adaptive_avg_pool2d(there, size) * scale
        column, row = (x + moved[0]).round().long(), (y + moved[1]).round().long()
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        positions.append(row.clamp(0, height - 1) * width + column.clamp(0, width - 1))
        around = F.max_pool2d(
            occluded(there, back)[None].float(),
            OCCLUSION_WINDOW,
            stride=1,
            padding=OCCLUSION_WINDOW // 2,
        )
        visible.append(inside & (F.adaptive_max_pool2d(around, size)[0] == 0))
    if not positions:
        return FirstFrameMotion(
            torch.empty(0, height * width, dtype=torch.int64),
            torch.empty(0, height * width, dtype=torch.bool),
        )
    return FirstFrameMotion(torch.stack(positions).flatten(1), torch.stack(visible).flatten(1))


def occluded(forward: Tensor, backward: Tensor) -> Tensor:
    """Tells where the way there and back does not end where it began.

    As UnFlow does (Meister et al. 2018): |f + b~| > 0.01 (|f| + |b~|) + 0.5 with b~ the backward
    flow at the forward one's target.

    Args:
        forward: Flow f, (2, h, w) in pixels.
        backward: Flow b of the way back, (2, h, w) in pixels.

    Returns:
        (h, w) bool.
    """
    returned = warp(backward, forward)
    return (forward + returned).norm(dim=0) > 0.01 * (
        forward.norm(dim=0) + returned.norm(dim=0)
    ) + 0.5


def fuse_with_first(frames: Tensor, motion: FirstFrameMotion) -> Tensor:
    """Takes every frame's visible pixels from the first frame, along the motion.

    There is no interpolation.

    Args:
        frames: (N, C, h, w).
        motion: From the first frame to the others.

    Returns:
        (N, C, h, w).
    """
    flat = frames.flatten(2)
    warped = flat[0][:, motion.positions.to(frames.device)].movedim(0, 1)  # (N - 1, C, h * w)
    fused = torch.where(motion.visible.to(frames.device)[:, None], warped, flat[1:])
    return torch.cat([flat[:1], fused]).view_as(frames)


def match_statistics(frames: Tensor, first: Tensor) -> Tensor:
    """Gives every channel of the frames mean and deviation of the first frame's.

    This is AdaIN (Huang and Belongie 2017).

    Args:
        frames: (N, C, h, w).
        first: (C, h, w).

    Returns:
        (N, C, h, w).
    """

    def statistics(of: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(of, (-2, -1), keepdim=True)
        return mean, (variance + 1e-5).sqrt()

    (mean, deviation), (wanted_mean, wanted_deviation) = statistics(frames), statistics(first)
    return (frames - mean) / deviation * wanted_deviation + wanted_mean
