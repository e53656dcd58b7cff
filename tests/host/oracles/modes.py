"""Other systems' attention over frames, written down a second time as plain formulas.

See `oracle.py` for the notation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import plain as oracle
from . import unet as unet_oracle


class Together(oracle.Edit, ABC):
    """An edit whose frames go through the UNet in one batch, so that a layer can see them all."""

    def noise(
        self,
        x: Tensor,
        sigma: Tensor,
        prompt: Any,
        keyframes: Any,
        blends: Any,
        ask: dict,
        hidden: Tensor | None,
        kept: Any = None,
    ) -> Tensor:
        resblock = None if hidden is None else lambda branch: hidden
        with unet_oracle.replaced(
            self.patcher.model.diffusion_model, self.together(ask), resblock, self.pnp_blocks[0]
        ):
            return unet_oracle.epsilon(self.patcher, x, sigma, prompt, list(range(len(x))))

    def together(self, ask: dict) -> Callable:
        def attention(layer: str, module: Any, tokens: Tensor) -> Tensor:
            asking = ask[layer] if ask and unet_oracle.injected(layer, self.pnp_blocks) else tokens
            frames = []
            for i in range(len(tokens)):
                seen = self.seen_by(layer, i)
                keys, values = (
                    torch.cat([project(of[j]) for j in seen])
                    for project, of in ((module.to_k, asking), (module.to_v, tokens))
                )
                frames.append(
                    module.to_out(
                        unet_oracle.softmax_attention(
                            module.to_q(asking[i]), keys, values, module.heads
                        )
                    )
                )
            return torch.stack(frames)

        return attention

    @abstractmethod
    def seen_by(self, layer: str, frame: int) -> list[int]:
        """The frames whose keys and values a frame's queries meet in a layer."""


class FirstFrame(Together):
    """Text2Video-Zero: the first frame alone."""

    def seen_by(self, layer: str, frame: int) -> list[int]:
        return [0]


class SparseCausal(Together):
    """Tune-A-Video: the first and the previous frame."""

    def seen_by(self, layer: str, frame: int) -> list[int]:
        return [0, max(0, frame - 1)]
