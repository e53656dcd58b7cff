"""Two keyframes' patches blended to one clip (Rerender-A-Video, arXiv 2306.07954, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from scipy.fft import dctn, idctn
from tokenflow_pack.tokenflow_ops.baselines.fusion import match_statistics
from tokenflow_pack.tokenflow_ops.carrying.motion import pixels
from tokenflow_pack.tokenflow_ops.measuring.metrics import dis_flow
from torch import Tensor

from .guided import Made, propagated, within

SLOPES = 2.5, 0.5, 0.5  # how much differences of L, a and b count beside their values


def between_keyframes(source: Tensor, edited: Tensor, numbers: Sequence[int]) -> Tensor:
    """Makes a clip (N, 3, H, W) of its edited keyframes.

    source: (N, 3, H, W). edited: (k, 3, H, W). numbers: of the k keyframes, the first and the last
    frame among them.
    """
    clip = torch.empty_like(source)
    clip[list(numbers)] = edited
    for (first, last), (start, end) in zip(pairwise(numbers), pairwise(edited), strict=True):
        frames = list(range(first, last + 1))
        ahead = propagated(source, start, frames[:-1])
        back = propagated(source, end, frames[:0:-1])[::-1]
        taken = torch.zeros(source.shape[2:], dtype=torch.bool)
        for i, (frame, one, other) in enumerate(zip(frames[1:-1], ahead, back, strict=True)):
            share = i / len(ahead)
            moved = pixels(*taken.shape) + dis_flow(source[frame], source[frame - 1])
            column, row = within(moved.round()).long()
            taken = taken[row, column] | chosen(one, other, share)
            clip[frame] = blended(one.picture, other.picture, taken, share)
    return clip


def chosen(one: Made, other: Made, share: float) -> Tensor:
    """Where the other one's patches are taken, (H, W) bool. share: of the way to its keyframe."""
    return (share * one.error >= (1 - share) * other.error) & (share > 0)


def blended(one: Tensor, other: Tensor, taken: Tensor, share: float) -> Tensor:
    """A picture with the mean of two (3, H, W) and the edges of the one that is taken.

    In CIELAB. The mean has the contrast of what is taken, and not less.
    """
    a, b = rgb_to_lab(torch.stack([one, other]))
    patched = torch.where(taken, b, a)
    alike_a, alike_b = match_statistics(torch.stack([a, b]), patched)
    mean = match_statistics(torch.lerp(alike_a, alike_b, share)[None], patched)[0]
    down = torch.where(taken[:-1], b.diff(dim=1), a.diff(dim=1))
    right = torch.where(taken[:, :-1], b.diff(dim=2), a.diff(dim=2))
    fused = [
        with_slopes(*channel, slope)
        for *channel, slope in zip(mean, down, right, SLOPES, strict=True)
    ]
    return lab_to_rgb(torch.stack(fused)[None])[0].clamp(0, 1)


def with_slopes(values: Tensor, down: Tensor, right: Tensor, weight: float) -> Tensor:
    """The picture u that minimizes |u - values|^2 + weight^2 |differences of u - given ones|^2.

    values: (H, W). down: wanted differences to the next row, (H - 1, W); right: to the next column,
    (H, W - 1). Solved exactly: the cosine transform has the differences' squares for eigenvectors.
    """
    zero_row, zero_column = torch.zeros(1, values.shape[1]), torch.zeros(values.shape[0], 1)
    slopes = torch.diff(torch.cat([zero_row, down, zero_row]), dim=0)
    slopes = slopes + torch.diff(torch.cat([zero_column, right, zero_column], 1), dim=1)
    waves = [2 - 2 * np.cos(np.pi * np.arange(side) / side) for side in values.shape]
    scale = 1 + weight**2 * np.add.outer(*waves)
    wanted = dctn((values - weight**2 * slopes).double().numpy(), norm="ortho")
    return torch.from_numpy(idctn(wanted / scale, norm="ortho")).to(values)
