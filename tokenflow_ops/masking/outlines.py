"""The outlines of what an edit changes.

Where the prompts disagree is known on the latents' grid; GrabCut (Rother et al., SIGGRAPH 2004)
follows the pictures' own outlines from there. Its colours of what is edited and what is not are the
clip's: an object that some frames tell apart is found in all of them. Where colours lead away from
what is to be edited, as on a ground of the object's colours, its surest half is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..keyframes import spread
from ..libraries import library

CERTAIN = 0.6  # below this share of the threshold a pixel is surely not edited
FEW = 0.25  # of the frames: what so few have above all others must not raise the others' threshold
LOST = 0.1  # share of what is surest below which a frame's mask has lost it
EMPTY = 0.003  # a clip with less of it above the threshold shows nothing to edit
LONGEST = 512  # pixels of a side that outlines are followed on
ROUNDS = 4  # of GrabCut
LEARNT_ON, LEARNT_AT = 16, 192  # frames that colours are learnt on, and pixels of their longer side

Colours = tuple[np.ndarray, np.ndarray]  # of what is edited and of the rest, in OpenCV's form


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


class Pictures(Protocol):
    """A clip whose frames (H, W, 3 or more) may be read as they are asked for, such as a tensor."""

    def __len__(self) -> int:
        """Returns the number of frames."""
        ...

    def __iter__(self) -> Iterator[Tensor]:
        """Reads the frames one after the other."""
        ...

    def __getitem__(self, numbers: Any) -> Tensor:
        """Reads frames by their numbers (n,)."""
        ...


def edit_masks(
    frames: Pictures,
    apart: Tensor,
    sensitivity: float = 1.0,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Finds all masks of `each_edit_mask` at once.

    Args:
        frames: As there.
        apart: As there.
        sensitivity: As there.
        on_step: As there.

    Returns:
        (N, H, W) float32.
    """
    return torch.stack(list(each_edit_mask(frames, apart, sensitivity, on_step)))


def each_edit_mask(
    frames: Pictures,
    apart: Tensor,
    sensitivity: float = 1.0,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Finds the pixels that two prompts disagree about, with the pictures' own outlines.

    The threshold is the clip's, so that a frame without the object has an empty mask.

    Args:
        frames: The source, N pictures of 0 to 1.
        apart: As of `disagreement`, (N, h, w).
        sensitivity: Above 1 more is found, below 1 less.
        on_step: Called ROUNDS times, or twice that, and after each frame; may raise to stop.

    Yields:
        A mask for each frame, (H, W) float32, 1 where it is to be edited, else 0.
    """
    cv2 = library("cv2")
    few = spread(len(frames), LEARNT_ON)
    samples = frames[few]
    size = samples.shape[1:3]
    usual = apart.flatten(1).amax(1).quantile(1 - FEW)
    level = otsu(apart.clamp(max=float(usual))) / sensitivity
    above = apart > level
    if float(above.float().mean()) < EMPTY or bool(above.all()):
        for _ in range(len(frames)):
            yield above.all().float().expand(size)
        return
    colours, sure = _learnt(samples, apart[few], level, float(apart[above].median()), on_step)
    for frame, there in zip(frames, apart, strict=True):
        picture, labels = _labelled(frame, there, level, sure, LONGEST)
        if colours is not None:
            cv2.grabCut(picture, labels, None, *colours, 1, cv2.GC_EVAL_FREEZE_MODEL)
        inside = torch.from_numpy(_inside(labels)).float()[None, None]
        yield F.interpolate(inside, size, mode="bilinear").round()[0, 0]
        on_step()


def grown(masks: Tensor, pixels: int) -> Tensor:
    """Adds to masks what lies near them.

    Args:
        masks: (N, H, W), 0 to 1.
        pixels: How near, across and down.

    Returns:
        (N, H, W).
    """
    if not pixels:
        return masks
    # A square's rows, then its columns: the whole square at once is slow where it is large.
    across = F.max_pool2d(masks[:, None], (1, 2 * pixels + 1), 1, (0, pixels))
    return F.max_pool2d(across, (2 * pixels + 1, 1), 1, (pixels, 0))[:, 0]


def softened(masks: Tensor) -> Tensor:
    """Makes the edge of masks (N, H, W) two pixels wide, as pictures have it."""
    return F.avg_pool2d(masks[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


def _learnt(
    frames: Tensor, apart: Tensor, level: float, sure: float, on_step: Callable[[], None]
) -> tuple[Colours | None, float]:
    """The colours of what is edited and of the rest, by some frames.

    sure: from here on a pixel is held to be edited, if without that the colours lose it.
    Returns: in OpenCV's form, None where all of the clip is one of the two; and from where on
    pixels are held, infinite for nowhere.
    """
    for held in (float("inf"), sure):
        parts = [
            _labelled(frame, there, level, held, LEARNT_AT)
            for frame, there in zip(frames, apart, strict=True)
        ]
        # One below the other: GrabCut takes a single picture.
        picture, labels = (np.concatenate(side) for side in zip(*parts, strict=True))
        colours = _rounds(picture, labels, on_step)
        found = torch.from_numpy(_inside(labels)).view(len(frames), -1, labels.shape[1])
        if not _lost(found, apart > sure):
            break
    return colours, held


def _rounds(picture: np.ndarray, labels: np.ndarray, on_step: Callable[[], None]) -> Colours | None:
    """Learns the two sides' colours on a picture, and labels it by them in place."""
    cv2 = library("cv2")
    colours = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its clusters start at random
    for start in [cv2.GC_INIT_WITH_MASK] + [cv2.GC_EVAL] * (ROUNDS - 1):
        # Then a side has no pixels to learn from; the colours of the round before stay.
        if _inside(labels).all() or not _inside(labels).any():
            return None if start == cv2.GC_INIT_WITH_MASK else colours
        cv2.grabCut(picture, labels, None, *colours, 1, start)
        on_step()
    return colours


def _lost(found: Tensor, surest: Tensor) -> bool:
    """Whether masks (n, H, W) leave out what is surest, (n, h, w), in half of its frames; bool.

    Some frames may be right to: those without the object.
    """
    inside = F.interpolate(found[:, None].float(), surest.shape[1:], mode="area")[:, 0] * surest
    there = surest.flatten(1).sum(1)
    share = inside.flatten(1).sum(1) / there
    return bool((share[there > 0] < LOST).float().mean() >= 0.5)


def _labelled(
    frame: Tensor, there: Tensor, level: float, sure: float, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """A frame (H, W, 3) as OpenCV has pictures, and what is likely or sure of its pixels."""
    cv2 = library("cv2")
    height, width = frame.shape[:2]
    shrink = min(1.0, longest / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    small = F.interpolate(frame[..., :3].movedim(-1, 0)[None].float().cpu(), size, mode="area")
    likely = F.interpolate(there[None, None], size, mode="bilinear")[0, 0]
    labels = np.full(size, cv2.GC_PR_BGD, np.uint8)
    labels[(likely > level).numpy()] = cv2.GC_PR_FGD
    labels[(likely < CERTAIN * level).numpy()] = cv2.GC_BGD
    labels[(likely > sure).numpy()] = cv2.GC_FGD
    picture = (small[0].movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()[..., ::-1].copy()
    return picture, labels


def _inside(labels: np.ndarray) -> np.ndarray:
    """What GrabCut takes for the foreground, bool."""
    cv2 = library("cv2")
    found: np.ndarray = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found
