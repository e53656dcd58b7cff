"""How consistent an edited clip is: warp error along the source's motion, sharpness and CLIP's
similarities beside it (paper, section 5).

Warp error rewards blur and doing nothing: read it beside the source's, the autoencoder's and the
per-frame edit's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..libraries import library

# Optical flow from one (3, h, w) image in [0, 1] to another: (2, h, w) x and y in pixels.
Flow = Callable[[Tensor, Tensor], Tensor]
SMALLEST = 16  # pixels of a side: OpenCV's DIS reads beyond the memory of lower pictures, and ends the process if they are wide


def dis_flow(first: Tensor, second: Tensor) -> Tensor:
    """Optical flow from `first` to `second`, (3, h, w) images in [0, 1], by OpenCV's DIS, which
    needs no weights.

    Borders of smaller ones are repeated up to a size that DIS takes. Returns: (2, h, w) x and y in
    pixels.
    """
    cv2 = library("cv2")
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = first.shape[1:]
    margin = (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height))
    padded = [
        F.pad(image, margin, mode="replicate") if any(margin) else image
        for image in (first, second)
    ]
    grey = [
        cv2.cvtColor((image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
        for image in padded
    ]
    flow = np.ascontiguousarray(search.calc(grey[0], grey[1], None)[:height, :width])
    return torch.from_numpy(flow).permute(2, 0, 1)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """image(p + flow(p)): (C, h, w) and (2, h, w) in pixels -> (C, h, w), bilinear, the border
    repeated.
    """
    height, width = image.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32),
        torch.arange(width, dtype=torch.float32),
        indexing="ij",
    )
    warped: Tensor = library("kornia").geometry.transform.remap(
        image[None].float(),
        (x + flow[0])[None],
        (y + flow[1])[None],
        padding_mode="border",
        align_corners=True,
    )
    return warped[0]


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Where frame t can be compared with frame t+1 (Lai et al. 2018): (h, w) bool.

    forward, backward: (2, h, w) flows t -> t+1 and t+1 -> t, in pixels.
    Occluded: |f + b~|^2 > 0.01 (|f|^2 + |b~|^2) + 0.5 with b~ the backward flow at the target.
    Motion boundary: |grad f|^2 > 0.01 |f|^2 + 0.002.
    """
    returned = warp(backward, forward)
    length = forward.square().sum(0)
    occluded = (forward + returned).square().sum(0) > 0.01 * (
        length + returned.square().sum(0)
    ) + 0.5
    gradient = library("kornia").filters.spatial_gradient(forward[None], mode="diff")[
        0
    ]  # (2, 2, h, w)
    boundary = gradient.square().sum((0, 1)) > 0.01 * length + 0.002
    return ~(occluded | boundary)


def source_motion(source: Tensor, flow: Flow = dis_flow) -> list[tuple[Tensor, Tensor]]:
    """Flow and visibility of every pair of neighbouring source frames, (N, 3, h, w) in [0, 1]: N -
    1 times ((2, h, w), (h, w) bool).
    """
    motion = []
    for first, second in zip(source[:-1], source[1:], strict=True):
        forward = flow(first, second)
        motion.append((forward, visible(forward, flow(second, first))))
    return motion


def warp_errors(frames: Tensor, motion: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean squared difference of each frame and the next one warped onto it, over visible pixels,
    x1e-3.

    frames: (N, 3, h, w) in [0, 1]. motion: the *source's*, from `source_motion` or known exactly.
    Returns: (N - 1,) float32; NaN for a pair with nothing visible.
    """
    errors = []
    for first, second, (flow, mask) in zip(frames[:-1], frames[1:], motion, strict=True):
        squared = (first - warp(second, flow)).square().mean(0)
        errors.append((squared * mask).sum() / mask.sum() * 1e3)
    return torch.stack(errors) if errors else torch.empty(0)


def sharpness(frames: Tensor) -> Tensor:
    """Mean squared Laplacian of the luminance, (N, 3, h, w) in [0, 1] -> (N,); compare only clips
    of the same content and size.
    """
    kornia = library("kornia")
    grey = kornia.color.rgb_to_grayscale(frames)
    squared: Tensor = kornia.filters.laplacian(grey, 3, normalized=False).square()
    return squared.mean((1, 2, 3))


def frame_similarities(embeddings: Tensor) -> Tensor:
    """Cosine of each frame's CLIP embedding and the next one's, (N, C) -> (N - 1,): 1 where CLIP
    sees no change.
    """
    return F.cosine_similarity(embeddings[:-1], embeddings[1:])


def prompt_scores(embeddings: Tensor, prompt: Tensor) -> Tensor:
    """Cosine of each frame's CLIP embedding and the prompt's, (N, C) and (1, C) -> (N,): the
    paper's CLIP score.
    """
    return F.cosine_similarity(embeddings, prompt)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, (N, 3, h, w) in [0, 1] -> (N,)."""
    return -10 * (first - second).square().mean((1, 2, 3)).clamp(min=1e-12).log10()
