"""Keyframes that were edited elsewhere, as an edit takes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..storage.counted import Counted


@dataclass(frozen=True)
class GivenKeyframes(Counted):
    """Edited keyframes and what they make of their clip.

    Attributes:
        numbers: The keyframes' frame numbers, ascending, from 0.
        latents: The clip made of them, encoded, (N, C, h, w) as on a LATENT socket.
        hidden: (N, H, W) in [0, 1], 1 where no keyframe shows what is to be seen; nothing of it at
            the keyframes themselves.

    Raises:
        ValueError: If the numbers are no frames of the clip in ascending order, or masks and
            latents are of different frames.
    """

    numbers: tuple[int, ...]
    latents: Tensor
    hidden: Tensor

    def __post_init__(self) -> None:
        frames = len(self.latents)
        ordered = tuple(sorted(set(self.numbers)))
        if not ordered or ordered != self.numbers or not 0 <= ordered[0] <= ordered[-1] < frames:
            raise ValueError(f"need ascending frame numbers below {frames}, got {self.numbers}")
        if self.hidden.ndim != 3 or len(self.hidden) != frames:
            raise ValueError(f"need {frames} masks (H, W), got {tuple(self.hidden.shape)}")

    def held(self) -> Iterable[Tensor]:
        return self.latents, self.hidden
