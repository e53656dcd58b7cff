"""Where every pixel of a clip's frames lies in one of its frames, however far away that is.

Optical flow from a frame straight to a keyframe fails where an object has turned, grown or moved
far; flow from frame to frame drifts. Here both are candidates, beside turned neighbours and the
rigid motions that have been found so far, each of them refined. Of every pixel's candidates the one
wins after which the *source's* keyframe looks most like the source's frame, at the pixel and where
its neighbours are like it: that can be measured. Of frames that are
blurred or noisy themselves none does so, and the plain flows are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..libraries import library
from ..measuring.metrics import dis_flow
from .alike import Alike

LONGEST = 256  # pixels of a side; motion in larger frames is found in smaller ones
WINDOW = 2  # pixels on each side over which likeness is measured
ANGLES = (-15, 15, -30, 30)  # degrees that something may turn by from one frame to the next
LOST = 0.03  # mean difference in [0, 1] from which on a pixel was not found
ENOUGH = 0.01  # share of lost pixels up to which no more is tried
RIGID, SUPPORT, INSIDE = 3, 20, 1.5  # motions, their pixels at least, and how exactly they fit
SAMPLED = 3000  # pixels that rigid motions are found from
# Difference above which a pixel says no more against a candidate, and by how much a rigid motion
# may be worse than others: what moves as one is less by chance.
MOST, FAVOUR = 0.2, 0.003
# Share of lost pixels, where few were lost before, of a frame that is blurred or noisy.
FLAWED = 0.1


@dataclass(frozen=True)
class Found:
    """Where a frame's pixels lie in a keyframe.

    Attributes:
        frame: The frame's number.
        positions: x and y in the keyframe, (2, h, w) in pixels of a picture of h x w.
        error: Mean difference of the source there and here, (h, w), 0 for equal.
        flawed: Whether the frame is blurred or noisy, so that the error tells little.
    """

    frame: int
    positions: Tensor
    error: Tensor
    flawed: bool = False


def find_motion(
    frames: Tensor,
    keyframe: int,
    span: range,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Found]:
    """Finds where the pixels of some frames lie in a keyframe, from the nearest frames on.

    Args:
        frames: The source, (N, 3, h, w) in [0, 1], of equal light (see `exposures`).
        keyframe: The keyframe's number.
        span: The frames that are asked for, with the keyframe among them.
        check: Called for every frame; may raise to stop.

    Yields:
        What was found, for every frame of the span but the keyframe.

    Raises:
        LibraryError: If OpenCV is missing or broken.
    """
    for ahead in (1, -1):
        search = _Search(frames, keyframe)
        last = span.stop if ahead == 1 else span.start - 1
        for frame in range(keyframe + ahead, last, ahead):
            check()
            yield search.next(frame, ahead)


class _Search:
    """One direction of a search, frame by frame away from the keyframe."""

    def __init__(self, frames: Tensor, keyframe: int) -> None:
        self.frames, self.keyframe = frames, keyframe
        self.here = pixels(*frames.shape[2:])
        self.known: dict[int, Tensor] = {keyframe: self.here}
        self.rigid: list[Tensor] = []
        self.lost = 0.0  # share of the last frame's pixels, of those that are not flawed

    def next(self, frame: int, ahead: int) -> Found:
        best = _Best(self.frames, frame, self.keyframe)
        before = frame - ahead
        for other in (before, before - ahead):
            if other in self.known:
                best.offer(at(self.known[other], self.flow(frame, other)), self)
        best.offer(self.flow(frame, self.keyframe), self)
        plain = best.positions
        for motion in self.rigid:
            best.offer(_applied(motion, self.here), self, FAVOUR)
        if best.lost() > ENOUGH:
            for degrees in ANGLES:
                best.offer(at(self.known[before], self.turned(frame, before, degrees)), self)
        self.rigid = rigid_motions(best.positions, best.error)
        for motion in self.rigid:
            best.offer(_applied(motion, self.here), self, FAVOUR)
        best.offer(best.positions, self)
        positions = best.positions
        flawed = best.lost() > max(FLAWED, 3 * self.lost)
        if flawed:
            positions = torch.where(best.error > LOST, plain, positions)
        else:
            self.lost = best.lost()
        self.known = {before: self.known[before], frame: positions}
        return Found(frame, positions, best.error, flawed)

    def flow(self, frame: int, other: int) -> Tensor:
        """Where a frame's pixels lie in another, (2, h, w)."""
        return self.here + dis_flow(self.frames[frame], self.frames[other])

    def turned(self, frame: int, other: int, degrees: float) -> Tensor:
        """The same by the flow to the other frame turned around its middle."""
        turn = _turned(self.here, degrees)
        return at(turn, self.here + dis_flow(self.frames[frame], at(self.frames[other], turn)))

    def refined(self, frame: int, positions: Tensor) -> Tensor:
        """Positions moved by the flow that is left."""
        left = dis_flow(self.frames[frame], at(self.frames[self.keyframe], positions))
        return at(positions, self.here + left)


class _Best:
    """Each pixel's best candidate so far."""

    def __init__(self, frames: Tensor, frame: int, keyframe: int) -> None:
        self.frame, self.source, self.there = frame, frames[frame], frames[keyframe]
        self.alike = Alike(self.source)
        self.positions = torch.zeros(2, *frames.shape[2:])
        self.error = torch.full(frames.shape[2:], float("inf"))
        self.score = self.error

    def offer(self, positions: Tensor, search: _Search, favour: float = 0.0) -> None:
        """Takes a candidate, as it is and refined, wherever it is better."""
        for candidate in (positions, search.refined(self.frame, positions)):
            error = difference(self.source, self.there, candidate)
            score = self.alike.mean(error.clamp(max=MOST)) - favour
            better = score < self.score
            self.score = torch.where(better, score, self.score)
            self.error = torch.where(better, error, self.error)
            self.positions = torch.where(better, candidate, self.positions)

    def lost(self) -> float:
        """The share of pixels that no candidate has found."""
        return float((self.error > LOST).float().mean())


def difference(frame: Tensor, keyframe: Tensor, positions: Tensor) -> Tensor:
    """Measures how unlike a frame is what lies at the positions in a keyframe.

    Args:
        frame: (3, h, w).
        keyframe: (3, h, w).
        positions: x and y in the keyframe, (2, h, w).

    Returns:
        Mean absolute difference around each pixel, (h, w); what lies outside counts as 1.
    """
    height, width = frame.shape[1:]
    x, y = positions
    outside = (x < -0.5) | (y < -0.5) | (x > width - 0.5) | (y > height - 0.5)
    error = (frame - at(keyframe, positions)).abs().mean(0) + outside.float()
    padded = F.pad(error[None, None], (WINDOW,) * 4, mode="reflect")
    return F.avg_pool2d(padded, 2 * WINDOW + 1, 1)[0, 0]


def torn(positions: Tensor) -> Tensor:
    """Tells where neighbours come from anywhere: alike by chance, not the same.

    A single tear, as along an outline, is none yet.

    Args:
        positions: Where pixels lie in a keyframe, (2, h, w).

    Returns:
        (h, w) from 0, where all around move as one, to 1.
    """
    padded = F.pad(positions[None], (1, 1, 1, 1), mode="replicate")
    smooth = F.avg_pool2d(padded, 3, 1)[0]  # what any turn or zoom is already
    tears = ((positions - smooth).norm(dim=0) > TEAR).float()
    share = F.avg_pool2d(tears[None, None], 9, 1, 4, count_include_pad=False)[0, 0]
    return ((share - FEW) / (MANY - FEW)).clamp(0, 1)


# Pixels by which a position leaves its neighbours' line, and shares of 9 x 9 pixels that do so.
TEAR, FEW, MANY = 0.4, 0.45, 0.75


def rigid_motions(positions: Tensor, error: Tensor) -> list[Tensor]:
    """Finds the largest rigid motions, turns and zooms included, that pixels follow.

    Args:
        positions: Where pixels lie in a keyframe, (2, h, w).
        error: How sure that is, (h, w); pixels above LOST do not count.

    Returns:
        At most RIGID matrices (2, 3) from a pixel's x and y to those in the keyframe.

    Raises:
        LibraryError: If OpenCV is missing or broken.
    """
    cv2 = library("cv2")
    sure = error <= LOST
    here, there = pixels(*error.shape)[:, sure].T, positions[:, sure].T
    every = max(1, len(here) // SAMPLED)
    start, end = here[::every].numpy(), there[::every].numpy()
    found: list[Tensor] = []
    while len(found) < RIGID and len(start) >= SUPPORT:
        motion, inside = cv2.estimateAffinePartial2D(
            start, end, method=cv2.RANSAC, ransacReprojThreshold=INSIDE, maxIters=500
        )
        if motion is None or inside.sum() < SUPPORT:
            break
        found.append(torch.from_numpy(motion).float())
        others = inside[:, 0] == 0
        start, end = start[others], end[others]
    return found


def exposures(frames: Tensor, shots: tuple[int, ...]) -> Tensor:
    """Finds how bright each frame is beside the first one of its shot, by what both show.

    Args:
        frames: (N, 3, h, w) in [0, 1].
        shots: The first frame of each shot, ascending from 0.

    Returns:
        (N,) factors, 1 where the light is the same.

    Raises:
        LibraryError: If OpenCV is missing or broken.
    """
    found, here = [1.0], pixels(*frames.shape[2:])
    light = 1.0  # all changes together: slow ones add up
    for frame in range(1, len(frames)):
        if frame in shots:
            light = 1.0
            found.append(light)
            continue
        now, last = frames[frame], frames[frame - 1]
        moved = at(last, here + dis_flow(now, last))
        lit = (moved > DARK) & (moved < BRIGHT) & (now > DARK) & (now < BRIGHT)
        change = float((now[lit] / moved[lit]).median()) if bool(lit.any()) else 1.0
        light *= change
        found.append(light if abs(light / found[-1] - 1) > STEADY else found[-1])
    return torch.tensor(found)


# Values that tell of the light, and a change of it that is none.
DARK, BRIGHT, STEADY = 0.08, 0.98, 0.01


def pixels(height: int, width: int) -> Tensor:
    """Lists the places of a picture's pixels.

    Args:
        height: Rows of the picture.
        width: Columns of the picture.

    Returns:
        x and y of every pixel, (2, height, width).
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).float()


def at(image: Tensor, positions: Tensor) -> Tensor:
    """Takes an image's values at positions: bilinear, the border repeated.

    Args:
        image: (C, h, w).
        positions: x and y in it, (2, H, W) in pixels.

    Returns:
        (C, H, W).
    """
    size = torch.tensor([image.shape[2] - 1, image.shape[1] - 1]).clamp(min=1)
    places = (positions / size[:, None, None] * 2 - 1).movedim(0, -1)[None]
    return F.grid_sample(image[None], places, padding_mode="border", align_corners=True)[0]


def _applied(motion: Tensor, here: Tensor) -> Tensor:
    return torch.einsum("ij,jhw->ihw", motion[:, :2], here) + motion[:, 2, None, None]


def _turned(here: Tensor, degrees: float) -> Tensor:
    middle = here.flatten(1).mean(1)[:, None, None]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return middle + torch.einsum("ij,jhw->ihw", torch.tensor([[c, -s], [s, c]]), here - middle)
