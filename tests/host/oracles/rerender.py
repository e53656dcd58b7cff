"""Rerender-A-Video's constraints on all frames together, written down a second time as plain
formulas. See `oracle.py` for the notation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .modes import Together


class Rerender(Together):
    """positions: (N - 1, h * w) where each latent pixel lay in the first frame; visible: (N - 1, h
    * w) whether it was to be seen there.
    """

    positions: Tensor
    visible: Tensor

    def seen_by(self, layer: str, frame: int) -> list[int]:
        return [0, max(0, frame - 1)] if layer.startswith("output_blocks.") else [frame]

    def guided(self, x: Tensor, step: int) -> Tensor:
        sigma, steps = self.sigmas[step], len(self.sigmas) - 1
        clean = x - sigma * super().guided(x, step)
        if step <= 0.1 * steps:
            clean = self.fused(clean)
        if step >= 0.8 * steps:
            clean = torch.stack([self.coloured(frame, clean[0]) for frame in clean])
        return (x - clean) / sigma

    def fused(self, clean: Tensor) -> Tensor:
        """Visible pixels are the first frame's."""
        frames = clean.clone()
        width = clean.shape[3]
        for i in range(1, len(clean)):
            for pixel, (position, seen) in enumerate(
                zip(self.positions[i - 1].tolist(), self.visible[i - 1].tolist(), strict=True)
            ):
                if seen:
                    frames[i, :, pixel // width, pixel % width] = clean[
                        0, :, position // width, position % width
                    ]
        return frames

    def coloured(self, frame: Tensor, first: Tensor) -> Tensor:
        """Every channel with the first frame's mean and deviation."""
        return torch.stack(
            [
                (part - part.mean()) / part.std() * like.std() + like.mean()
                for part, like in zip(frame, first, strict=True)
            ]
        )
