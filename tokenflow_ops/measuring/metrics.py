"""How consistent an edited clip is (paper, section 5).

The measures are warp error along the source's motion, and beside it sharpness and CLIP's
similarities. Warp error rewards blur and doing nothing: read it beside the source's, the
autoencoder's and the per-frame edit's.
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
# Pixels of a side: OpenCV's DIS reads beyond the memory of lower pictures, and ends the process if
# they are wide.
SMALLEST = 16


def dis_flow(first: Tensor, second: Tensor) -> Tensor:
    """Finds the optical flow between two images by OpenCV's DIS, which needs no weights.

    Borders of smaller images are repeated up to a size that DIS takes.

    Args:
        first: (3, h, w) in [0, 1], on the CPU.
        second: (3, h, w) in [0, 1], where the flow goes to, on the CPU.

    Returns:
        (2, h, w) x and y in pixels.

    Raises:
        LibraryError: If OpenCV is missing or broken.
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
    """Takes image(p + flow(p)) for every pixel p: bilinear, the border repeated.

    Args:
        image: (C, h, w).
        flow: (2, h, w) x and y in pixels.

    Returns:
        (C, h, w) float32.

    Raises:
        LibraryError: If kornia is missing or broken.
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
    """Tells where frame t can be compared with frame t+1 (Lai et al. 2018).

    Occluded: |f + b~|^2 > 0.01 (|f|^2 + |b~|^2) + 0.5 with b~ the backward flow at the target.
    Motion boundary: |grad f|^2 > 0.01 |f|^2 + 0.002.

    Args:
        forward: Flow f from t to t+1, (2, h, w) in pixels.
        backward: Flow b from t+1 to t, (2, h, w) in pixels.

    Returns:
        (h, w) bool, False where a pixel is occluded or on a motion boundary.

    Raises:
        LibraryError: If kornia is missing or broken.
    """
    returned = warp(backward, forward)
    length = forward.square().sum(0)
    occluded = (forward + returned).square().sum(0) > 0.01 * (
        length + returned.square().sum(0)
    ) + 0.5
    gradient = library("kornia").filters.spatial_gradient(forward[None], mode="diff")
    boundary = gradient[0].square().sum((0, 1)) > 0.01 * length + 0.002  # of (2, 2, h, w)
    return ~(occluded | boundary)


def source_motion(source: Tensor, flow: Flow = dis_flow) -> list[tuple[Tensor, Tensor]]:
    """Finds flow and visibility of every pair of neighbouring source frames.

    Args:
        source: (N, 3, h, w) in [0, 1].
        flow: Finds the flow from one image to another, as `dis_flow` does.

    Returns:
        N - 1 times ((2, h, w), (h, w) bool).

    Raises:
        LibraryError: If kornia, or OpenCV for `dis_flow`, is missing or broken.
    """
    motion = []
    for first, second in zip(source[:-1], source[1:], strict=True):
        forward = flow(first, second)
        motion.append((forward, visible(forward, flow(second, first))))
    return motion


def warp_errors(frames: Tensor, motion: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Measures the mean squared difference of each frame and the next one warped onto it, x1e-3.

    Only visible pixels count.

    Args:
        frames: (N, 3, h, w) in [0, 1].
        motion: The *source's*, from `source_motion` or known exactly.

    Returns:
        (N - 1,) float32; NaN for a pair with nothing visible.

    Raises:
        LibraryError: If kornia is missing or broken.
    """
    errors = []
    for first, second, (flow, mask) in zip(frames[:-1], frames[1:], motion, strict=True):
        squared = (first - warp(second, flow)).square().mean(0)
        errors.append((squared * mask).sum() / mask.sum() * 1e3)
    return torch.stack(errors) if errors else torch.empty(0)


def sharpness(frames: Tensor) -> Tensor:
    """Measures the mean squared Laplacian of the luminance.

    Compare only clips of the same content and size.

    Args:
        frames: (N, 3, h, w) in [0, 1].

    Returns:
        (N,).

    Raises:
        LibraryError: If kornia is missing or broken.
    """
    kornia = library("kornia")
    grey = kornia.color.rgb_to_grayscale(frames)
    squared: Tensor = kornia.filters.laplacian(grey, 3, normalized=False).square()
    return squared.mean((1, 2, 3))


def frame_similarities(embeddings: Tensor) -> Tensor:
    """Measures the cosine of each frame's CLIP embedding and the next one's.

    Args:
        embeddings: Of the frames, (N, C).

    Returns:
        (N - 1,): 1 where CLIP sees no change.
    """
    return F.cosine_similarity(embeddings[:-1], embeddings[1:])


def prompt_scores(embeddings: Tensor, prompt: Tensor) -> Tensor:
    """Measures the cosine of each frame's CLIP embedding and the prompt's: the paper's CLIP score.

    Args:
        embeddings: Of the frames, (N, C).
        prompt: Of the prompt, (1, C).

    Returns:
        (N,).
    """
    return F.cosine_similarity(embeddings, prompt)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Measures the peak signal-to-noise ratio of each frame in dB.

    Args:
        first: (N, 3, h, w) in [0, 1].
        second: (N, 3, h, w) in [0, 1].

    Returns:
        (N,), at most 120.

    Examples:
        >>> psnr(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)).round().tolist()
        [20.0]
    """
    return -10 * (first - second).square().mean((1, 2, 3)).clamp(min=1e-12).log10()
