"""Frame numbers as users write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from comfy import model_management
from comfy_api.latest import io

from ...host.validation.errors import NodeError
from ...host.video.clips import Clip
from ...tokenflow_ops.keyframes import ONE_SHOT
from ...tokenflow_ops.matching.cuts import find_cuts

FOUND, NO_CUTS = "found", "none"
SIDE, SMALLEST = 64, 5  # pixels of the longest side of small pictures, and of the shortest


def parsed(node: str, text: str, frames: int, socket: str = "numbers") -> list[int]:
    """Reads frame numbers, counted from 0.

    Args:
        node: The node's name, for errors.
        text: Numbers with commas or spaces between them.
        frames: How many frames the clip has.
        socket: The input's name, for errors.

    Returns:
        The numbers as they were written.

    Raises:
        NodeError: If it is anything else, or a number comes twice or is no frame of the clip.
    """
    check_text(node, text, socket)
    numbers = [int(word) for word in words(text)]
    beyond = [number for number in numbers if number >= frames]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if beyond or twice:
        found = (
            f"frame {beyond[0]} of a clip of {frames}." if beyond else f"frame {twice[0]} twice."
        )
        raise NodeError(node, socket, found, f"Give numbers from 0 to {frames - 1}, each once.")
    return numbers


def check_text(node: str, text: str, socket: str = "numbers") -> None:
    """Checks that a text is frame numbers.

    Args:
        node: The node's name, for errors.
        text: What was written.
        socket: The input's name, for errors.

    Raises:
        NodeError: If it is anything else.
    """
    wrong = [word for word in words(text) if not re.fullmatch("[0-9]{1,9}", word)]
    if wrong or not words(text):
        found = f"{wrong[0][:40]!r}, which is no frame number." if wrong else "no frame number."
        raise NodeError(node, socket, found, 'Write numbers counted from 0, as in "0, 8, 16".')


def words(text: str) -> list[str]:
    """Splits a text at commas and spaces."""
    return re.split(r"[,;\s]+", text.strip(" ,;\n\t")) if text.strip(" ,;\n\t") else []


def shrunk(clip: Clip) -> torch.Tensor:
    """Makes the small pictures of a clip in which cuts and keyframes are looked for.

    Args:
        clip: The clip, of N frames.

    Returns:
        (N, 3, h, w) float32, no side longer than SIDE.
    """
    share, small = min(1.0, SIDE / max(clip.size)), torch.empty(0)
    size = [max(SMALLEST, round(side * share)) if share < 1 else side for side in clip.size]
    done = 0
    for block in clip.blocks():
        pictures = block.movedim(-1, 1)
        if share < 1:
            pictures = torch.nn.functional.interpolate(pictures, size, mode="area")
        if not done:
            small = torch.empty(len(clip), *pictures.shape[1:])
        small[done : done + len(pictures)] = pictures
        done += len(pictures)
        model_management.throw_exception_if_processing_interrupted()
    return small[:done]


def shots_of(pictures: torch.Tensor, cuts: str) -> tuple[int, ...]:
    """Finds the first frame of each shot.

    Args:
        pictures: The clip's small pictures, of `shrunk`.
        cuts: FOUND or NO_CUTS.

    Returns:
        Frame numbers, ascending from 0.
    """
    if cuts == NO_CUTS:
        return ONE_SHOT
    check = model_management.throw_exception_if_processing_interrupted
    return find_cuts(pictures, model_management.get_torch_device(), check)


def check_shots(
    node: str, numbers: Sequence[int], shots: Sequence[int], socket: str = "numbers"
) -> None:
    """Checks that every shot has a keyframe.

    Args:
        node: The node's name, for errors.
        numbers: The keyframes' numbers.
        shots: The first frame of each shot, ascending from 0.
        socket: The input's name, for errors.

    Raises:
        NodeError: If one has none.
    """
    ends = [*shots[1:], max(*numbers, *shots) + 1]
    for first, stop in zip(shots, ends, strict=True):
        if not any(first <= number < stop for number in numbers):
            found = f"no keyframe in the shot that begins at frame {first}."
            remedy = "Add one of its frames, or set cuts to none if it is no other shot."
            raise NodeError(node, socket, found, remedy)


def cuts_input() -> io.Combo.Input:
    """Makes the input for whether the clip has cuts."""
    return io.Combo.Input(
        "cuts",
        options=[FOUND, NO_CUTS],
        default=FOUND,
        optional=True,
        tooltip="found: where another shot begins, keyframes begin anew, and nothing is carried "
        "across. none: the clip is one shot.",
    )
