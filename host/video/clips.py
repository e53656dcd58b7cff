"""Clips from inputs that take IMAGE or VIDEO: a film's frames are read a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ...tokenflow_ops import Inversion
from ..measuring.cropping import Size, crop, describe_crop, encoded_part, size_of
from ..validation.errors import NodeError
from .reading import count_frames, few_of, in_blocks, is_file, read_frames, video_facts


@dataclass(frozen=True)
class Clip:
    """What an input that takes IMAGE or VIDEO was given.

    Attributes:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        given: Pictures (N, H, W, 3 or more) in [0, 1], or a VIDEO in a file.
        length: N.
        whole: The pictures' height and width.
        size: Those of their middle, which is what counts.
        rate: Frames a second, None if it is not known.
    """

    node: str
    socket: str
    given: Any
    length: int
    whole: Size
    size: Size
    rate: Fraction | None = None

    @classmethod
    def of(cls, node: str, socket: str, given: Any) -> Clip:
        """Looks at what an input was given, and of a file at its first frame.

        Args:
            node: The node's name, for errors.
            socket: The input's name, for errors.
            given: An IMAGE or a VIDEO.

        Returns:
            The clip.

        Raises:
            NodeError: If the video cannot be read, or has no frames.
        """
        if isinstance(given, Tensor):
            return cls(node, socket, given, len(given), size_of(given), size_of(given))
        facts = video_facts(node, socket, given)
        first = next(read_frames(node, socket, given), None)
        if first is None:
            found = "a video without frames."
            raise NodeError(node, socket, found, "Connect one with frames.")
        size = first.shape[0], first.shape[1]
        if not is_file(given):
            given = given.get_components().images
            return cls(node, socket, given, len(given), size, size, facts.rate)
        length = count_frames(node, socket, given)
        return cls(node, socket, given, length, size, size, facts.rate)

    def __len__(self) -> int:
        return self.length

    @property
    def streamed(self) -> bool:
        """Whether frames come from a file: all of them at once may fill the memory."""
        return not isinstance(self.given, Tensor)

    def cut(self, size: Size) -> Clip:
        """Returns the clip with the middle of its pictures, of such a size."""
        return replace(self, size=size)

    def as_encoded(self, inversion: Inversion) -> tuple[Clip, str]:
        """Cuts the source's frames to what was inverted of them.

        Args:
            inversion: Their inversion.

        Returns:
            The clip, and what was cut off in words.

        Raises:
            NodeError: If frames of this size were not inverted.
        """
        size = encoded_part(self.node, self.socket, self.whole, inversion)
        return self.cut(size), describe_crop(self.socket, self.whole, size)

    def blocks(self) -> Iterator[Tensor]:
        """Reads the clip as many frames at a time as are held at once.

        Yields:
            (n, H, W, 3) float32 on the CPU; of all clips of this size as many.

        Raises:
            NodeError: If the video cannot be read, or has lost frames.
        """
        if isinstance(self.given, Tensor):
            for block in self.given.split(few_of(self.size)):
                yield self._plain(block)
            return
        frames = read_frames(self.node, self.socket, self.given, count=self.length)
        found = 0
        for block in in_blocks(crop(frame, self.size, 0) for frame in frames):
            yield block
            found += len(block)
        if found < self.length:
            raise self._ended(found)

    def __iter__(self) -> Iterator[Tensor]:
        """Reads the clip frame by frame, (H, W, 3) float32 on the CPU."""
        for block in self.blocks():
            yield from block

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """Reads some frames.

        Args:
            numbers: Their numbers, (n,), in any order.

        Returns:
            (n, H, W, 3) float32 on the CPU.

        Raises:
            NodeError: If the video cannot be read, or ends before one of them.
        """
        if isinstance(self.given, Tensor):
            return self._plain(self.given[numbers.to(self.given.device)])
        wanted, places = numbers.unique(return_inverse=True)
        rows = wanted.tolist()
        frames = read_frames(self.node, self.socket, self.given, chosen=rows)
        found = torch.empty(len(rows), *self.size, 3)
        count = 0
        for count, frame in enumerate(frames, 1):
            found[count - 1] = crop(frame, self.size, 0)
        if count < len(rows):
            raise self._ended(rows[count])
        return found[places]

    def _ended(self, found: int) -> NodeError:
        told = f"a video that ends before frame {found} of {self.length}."
        return NodeError(self.node, self.socket, told, "Convert its file, which may be damaged.")

    def _plain(self, pictures: Tensor) -> Tensor:
        return crop(pictures, self.size)[..., :3].float().cpu()


def channels_first(clip: Clip) -> Callable[[Tensor], Tensor]:
    """Makes a function that gives a clip's frames (n, 3, H, W) by their numbers (n,)."""
    return lambda numbers: clip[numbers].movedim(-1, 1)


def in_step(clips: Mapping[str, Clip]) -> Iterator[dict[str, Tensor]]:
    """Reads clips side by side.

    Args:
        clips: By name, of one size and length.

    Yields:
        Blocks of the same frames of all clips by name, (n, H, W, 3) each.

    Raises:
        NodeError: If a video cannot be read, or has lost frames.
    """
    for blocks in zip(*(clip.blocks() for clip in clips.values()), strict=True):
        yield dict(zip(clips, blocks, strict=True))
