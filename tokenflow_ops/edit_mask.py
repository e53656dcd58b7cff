"""Where an edit is to happen, found by what the two prompts make of the source.

A model that is asked for gold where the source has wood disagrees with itself there and nowhere
else (DiffEdit, Couairon et al., ICLR 2023). That is a rough mask on the latents' grid; GrabCut
(Rother et al., SIGGRAPH 2004) then follows the picture's own outlines.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .inversion import Inversion
from .libraries import library
from .parameterization import Parameterization, passed

# The prompts are compared at these shares of SD's schedule: high noise tells large things apart,
# low noise their outlines.
SHARES = (0.15, 0.35, 0.6)
CERTAIN = 0.4  # below this share of the threshold a pixel is surely not edited
EMPTY = 0.003  # a frame with less of it above the threshold shows nothing to edit
LONGEST = 512  # pixels of a side that outlines are followed on
ROUNDS = 4  # of GrabCut


def compared_steps(inversion: Inversion, parameterization: Parameterization) -> list[int]:
    """Chooses the steps of an inversion at which the prompts are compared.

    Args:
        inversion: The source's path.
        parameterization: What its noise levels mean.

    Returns:
        Those closest to SHARES of SD's schedule, ascending, each once.
    """
    levels = [parameterization.noise_over_signal(float(sigma)) for sigma in inversion.sigmas[:-1]]
    shares = torch.tensor([passed(level) for level in levels])
    return sorted({int((shares - share).abs().argmin()) for share in SHARES})


def disagreement(edit: Tensor, source: Tensor) -> Tensor:
    """Measures how much two predictions of the clean frames differ, place by place.

    Args:
        edit: Denoised frames under the edit prompt, (N, C, h, w).
        source: The same under the source prompt.

    Returns:
        (N, h, w) float32, smoothed over 3 x 3 places.
    """
    apart = (edit.float() - source.float()).norm(dim=1, keepdim=True)
    return F.avg_pool2d(apart, 3, 1, 1, count_include_pad=False)[:, 0].cpu()


def otsu(values: Tensor) -> float:
    """Finds the threshold that parts values into two groups best (Otsu 1979).

    Args:
        values: Any shape, 0 or more.

    Returns:
        A value between the groups.
    """
    cv2 = library("cv2")
    scale = float(values.max()) / 255 or 1.0
    grey = (values.flatten() / scale).round().byte().numpy()[None]
    return scale * (0.5 + float(cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)[0]))


def edit_masks(
    frames: Tensor,
    apart: Tensor,
    sensitivity: float = 1.0,
    grow: int = 0,
    on_frame: Callable[[], None] = lambda: None,
) -> Tensor:
    """Finds the pixels that two prompts disagree about, with the picture's own outlines.

    The threshold is the clip's, so that a frame without the object has an empty mask.

    Args:
        frames: The source, (N, H, W, 3 or more), 0 to 1.
        apart: As of `disagreement`, (N, h, w).
        sensitivity: Above 1 more is found, below 1 less.
        grow: Pixels that are added all around.
        on_frame: Called after each frame; may raise to stop.

    Returns:
        (N, H, W) float32, 1 where the frames are to be edited, else 0.
    """
    height, width = frames.shape[1:3]
    shrink = min(1.0, LONGEST / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    level = otsu(apart) / sensitivity
    found = []
    for frame, there in zip(frames, apart, strict=True):
        small = F.interpolate(frame[..., :3].movedim(-1, 0)[None].float().cpu(), size, mode="area")
        likely = F.interpolate(there[None, None], size, mode="bilinear")[0, 0]
        inside = _outlined(small[0].movedim(0, -1), likely, level).float()[None, None]
        mask = F.interpolate(inside, (height, width), mode="bilinear").round()
        if grow:
            # A square's rows, then its columns: the whole square at once is slow where it is large.
            mask = F.max_pool2d(mask, (1, 2 * grow + 1), 1, (0, grow))
            mask = F.max_pool2d(mask, (2 * grow + 1, 1), 1, (grow, 0))
        found.append(mask[0, 0])
        on_frame()
    return torch.stack(found)


def _outlined(frame: Tensor, likely: Tensor, level: float) -> Tensor:
    """(H, W) bool: what of a frame (H, W, 3) is likely above a level, up to its outline."""
    above = likely > level
    if float(above.float().mean()) < EMPTY or bool(above.all()):
        return above & (above.float().mean() >= EMPTY)
    cv2 = library("cv2")
    labels = np.full(above.shape, cv2.GC_PR_BGD, np.uint8)
    labels[above.numpy()] = cv2.GC_PR_FGD
    labels[(likely < CERTAIN * level).numpy()] = cv2.GC_BGD
    picture = (frame.clamp(0, 1) * 255).round().byte().numpy()[..., ::-1].copy()
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its clusters start at random
    cv2.grabCut(picture, labels, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    return torch.from_numpy((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
