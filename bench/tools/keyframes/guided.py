"""Frames between keyframes by guided patches, as EbSynth makes them (Fišer et al. 2017).

Guides and weights are Rerender-A-Video's (arXiv 2306.07954, section 4.2): colours and edges of the
source, places moved along its flow, and the frame before moved along it. Patches are searched from
coarse to fine. EbSynth's even use of all patches is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import torch
from tokenflow_pack.tokenflow_ops.baselines.fusion import occluded
from tokenflow_pack.tokenflow_ops.carrying.motion import at, pixels
from tokenflow_pack.tokenflow_ops.measuring.metrics import dis_flow
from torch import Tensor
from torch.nn import functional as F

from .carried import PATCH, nearest

COLOURS, EDGES, BEFORE, PLACES, STYLE = 6.0, 0.5, 0.5, 2.0, 1.0  # weights of squared differences
COARSEST = 64  # pixels of a side up to which all patches are compared
ROUNDS = 2  # of pictures made and patches searched anew, at every level
FILLED_FROM = 5  # pixels around, of what fills hidden ones
LAPLACIAN = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])
HALF = PATCH // 2
# Moves of a patch, and neighbours whose moves are tried, in pixels.
MOVES = [(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)]
NEIGHBOURS = [(1, 0), (-1, 0), (0, 1), (0, -1)]


@dataclass(frozen=True)
class Made:
    """A frame (3, H, W) of a keyframe's patches, and how unlike their guides are, (H, W)."""

    picture: Tensor
    error: Tensor


def propagated(source: Tensor, style: Tensor, frames: Sequence[int]) -> list[Made]:
    """Makes frames of a keyframe, one after the other.

    source: the clip, (N, 3, H, W). style: the edited keyframe, (3, H, W). frames: its number, and
    those of the frames from there on, which are made.
    """
    here = pixels(*style.shape[1:])
    places = here / torch.tensor([style.shape[2], style.shape[1]])[:, None, None]
    guides = guided(source[frames[0]], places, style)
    moved, before, made = places, style, list[Made]()
    for last, frame in pairwise(frames):
        flow, back = dis_flow(source[frame], source[last]), dis_flow(source[last], source[frame])
        hidden = occluded(flow, back)
        moved = filled(at(moved, here + flow), hidden)
        seen = guided(source[frame], moved, filled(at(before, here + flow), hidden))
        made.append(synthesised(style, guides, seen))
        before = made[-1].picture
    return made


def guided(source: Tensor, places: Tensor, before: Tensor) -> Tensor:
    """All guides of a frame, (11, H, W), so that squared differences are weighted.

    A guide's weight is that of three channels, as EbSynth reads pictures; places fill two of them.
    """
    padded = F.pad(source[None], (1, 1, 1, 1), mode="replicate")
    edges = F.conv2d(padded.transpose(0, 1), LAPLACIAN[None, None])[:, 0].clamp(0, 1)
    parts = ((source, COLOURS), (edges, EDGES), (before, BEFORE), (places, PLACES))
    return torch.cat([(weight / 3) ** 0.5 * part for part, weight in parts])


def filled(values: Tensor, hidden: Tensor) -> Tensor:
    """Values (C, H, W), the hidden ones from those around them."""
    mask = hidden.byte().numpy()
    channels = [
        cv2.inpaint(channel.contiguous().numpy(), mask, FILLED_FROM, cv2.INPAINT_TELEA)
        for channel in values
    ]
    return torch.stack([torch.from_numpy(channel) for channel in channels])


def synthesised(style: Tensor, there: Tensor, here: Tensor) -> Made:
    """A picture of a keyframe's patches, from coarse to fine.

    style: the keyframe, (3, H, W). there, here: guides of the keyframe and of the frame, (C, H, W).
    """
    levels = [(style, there, here)]
    while max(levels[-1][0].shape) > COARSEST:
        levels.append(tuple(F.avg_pool2d(part[None], 2, ceil_mode=True)[0] for part in levels[-1]))
    found = None
    for look, from_, to in reversed(levels):
        size = look.shape[1:]
        if found is None:
            row = nearest(patches_of(to), patches_of(from_))
            found = pixels(*size).flatten(1)[:, row].view(2, *size)
        else:
            moves = found - pixels(*found.shape[1:])
            larger = F.interpolate(2 * moves[None], scale_factor=2)[0, :, : size[0], : size[1]]
            found = within(pixels(*size) + larger)
        for _ in range(ROUNDS):
            known, wanted = (
                patches_of(torch.cat([guides, (STYLE / 3) ** 0.5 * picture]))
                for guides, picture in ((from_, look), (to, voted(look, found)))
            )
            found, error = improved(found, known, wanted)
    return Made(voted(style, found), error)


def patches_of(maps: Tensor) -> Tensor:
    """The values around every pixel of maps (C, h, w), (h * w, C * PATCH^2)."""
    padded = F.pad(maps[None], (HALF,) * 4, mode="replicate")
    return F.unfold(padded, PATCH)[0].T.contiguous()


def improved(found: Tensor, there: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """Better positions (2, h, w) among those nearby and those of neighbours (PatchMatch).

    there, here: patches (h * w, D). Returns also how unlike they are, (h, w).
    """
    height, width = found.shape[1:]
    own = pixels(height, width)
    moves = F.pad((found - own)[None], (1, 1, 1, 1), mode="replicate")[0]
    offers = [found + torch.tensor(move)[:, None, None] for move in MOVES]
    for x, y in NEIGHBOURS:
        offers.append(own + moves[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width])
    tried = torch.stack([within(offer) for offer in offers]).flatten(2)
    rows = (tried[:, 1] * width + tried[:, 0]).long()
    unlike = torch.cat(  # in parts that stay in the processor's cache
        [
            torch.stack([(part - there[row]).square_().sum(1) for row in chosen])
            for part, chosen in zip(here.split(512), rows.split(512, 1), strict=True)
        ],
        1,
    )
    least, best = unlike.min(0)
    positions = tried.gather(0, best.expand(1, 2, -1))[0]
    return positions.view(2, height, width), least.view(height, width)


def within(positions: Tensor) -> Tensor:
    """Positions (2, h, w) inside of the picture."""
    height, width = positions.shape[1:]
    return torch.stack([positions[0].clamp(0, width - 1), positions[1].clamp(0, height - 1)])


def voted(style: Tensor, found: Tensor) -> Tensor:
    """The mean of all patches of a picture (3, h, w) that lie over a pixel.

    found: where the patches' middles come from, (2, h, w) whole numbers.
    """
    height, width = found.shape[1:]
    own = pixels(height, width)
    moves = F.pad((found - own)[None], (HALF,) * 4, mode="replicate")[0]
    total = torch.zeros_like(style)
    for y in range(PATCH):
        for x in range(PATCH):
            column, row = within(own + moves[:, y : y + height, x : x + width]).long()
            total += style[:, row, column]
    return total / PATCH**2
