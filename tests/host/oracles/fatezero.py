"""FateZero's attention blending on all frames together, written down a second time as plain
formulas. See `oracle.py` for the notation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import source as source_oracle
from . import unet as unet_oracle
from .modes import SparseCausal


@contextmanager
def crossed(unet: Any, cross: Callable) -> Iterator[None]:
    """Cross-attention layers answer cross(layer, module, tokens, words)."""
    modules = {name: module for name, module in unet.named_modules() if name.endswith("attn2")}
    try:
        for name, module in modules.items():
            module.forward = lambda tokens, context, name=name, module=module, **_: cross(
                name, module, tokens, context
            )
        yield
    finally:
        for module in modules.values():
            del module.forward


def maps_of(module: Any, tokens: Tensor, words: Tensor) -> list[Tensor]:
    """A frame's cross-attention by head: (P, C) and (T, D) -> heads times (P, T)."""
    heads = zip(
        module.to_q(tokens).chunk(module.heads, -1),
        module.to_k(words).chunk(module.heads, -1),
        strict=True,
    )
    return [torch.softmax(q @ k.T / q.shape[-1] ** 0.5, -1) for q, k in heads]


def closest_words(words: Tensor, others: Tensor) -> list[tuple[int, float]]:
    """For every word of (T, D) the most similar of the others and their cosine distance."""
    similarity = [
        [float(torch.cosine_similarity(word, other, dim=0)) for other in others] for word in words
    ]
    return [(row.index(max(row)), 1 - max(row)) for row in similarity]


def changed(words: Tensor, others: Tensor) -> list[bool]:
    """Which of the words the others do not have."""
    distances = [distance for _, distance in closest_words(words, others)]
    return [distance > max(0.1, max(distances) / 2) for distance in distances]


class FateZero(SparseCausal):
    """most_tokens: layers with more keep their own maps. strong: share of the strongest attention
    that makes a place the edit's.
    """

    most_tokens = 1024
    strong = 0.3
    self_until = 0.7
    cross_until = 0.8

    def known(self, step: int) -> source_oracle.Source:
        self.step, self.size = step, self.path.shape[-2:]
        self.looks: dict[str, list[list[Tensor]]] = {}
        self.regions: dict[tuple[int, int, int], Tensor] = getattr(self, "regions", {})

        def look(layer: str, module: Any, tokens: Tensor, words: Tensor) -> Tensor:
            self.looks.setdefault(layer, []).append(maps_of(module, tokens[0], words[0]))
            return module.to_out(self.values(self.looks[layer][-1], module.to_v(words[0])))[None]

        with crossed(self.patcher.model.diffusion_model, look):
            self.shown = super().known(step)
        return self.shown

    def before(self, share: float) -> bool:
        return self.step < int(share * (len(self.sigmas) - 1))

    def noise(self, x: Tensor, sigma: Tensor, prompt: Tensor, *rest: Any) -> Tensor:
        self.edits = prompt is self.positive
        if not (self.edits and self.before(self.cross_until)):
            return super().noise(x, sigma, prompt, *rest)
        with crossed(self.patcher.model.diffusion_model, self.cross):
            return super().noise(x, sigma, prompt, *rest)

    def values(self, maps: list[Tensor], values: Tensor) -> Tensor:
        return torch.cat(
            [weights @ v for weights, v in zip(maps, values.chunk(len(maps), -1), strict=True)], -1
        )

    def cross(self, layer: str, module: Any, tokens: Tensor, words: Tensor) -> Tensor:
        """The source's maps for the words that the source prompt has too."""
        if not hasattr(self, "words"):
            self.words = changed(words[0], self.source[0]), closest_words(words[0], self.source[0])
        (new, match), frames = self.words, []
        for i, frame in enumerate(tokens):
            maps = maps_of(module, frame, words[0])
            if len(frame) <= self.most_tokens:
                for own, source in zip(maps, self.looks[layer][i], strict=True):
                    for word in range(own.shape[1]):
                        if not new[word]:
                            own[:, word] = source[:, match[word][0]]
            frames.append(module.to_out(self.values(maps, module.to_v(words[0]))))
        return torch.stack(frames)

    def together(self, ask: dict) -> Callable:
        plain = super().together(ask)

        def attention(layer: str, module: Any, tokens: Tensor) -> Tensor:
            own = plain(layer, module, tokens)
            if not (
                self.edits and self.before(self.self_until) and tokens.shape[1] <= self.most_tokens
            ):
                return own
            phi, frames = self.shown.phi[layer], []
            for i in range(len(tokens)):
                seen = self.seen_by(layer, i)
                keys, values = (
                    torch.cat([module.to_k(phi[j]) for j in seen]),
                    torch.cat([module.to_v(tokens[j]) for j in seen]),
                )
                source = module.to_out(
                    unet_oracle.softmax_attention(module.to_q(phi[i]), keys, values, module.heads)
                )
                frames.append(torch.where(self.region(i, tokens.shape[1])[:, None], own[i], source))
            return torch.stack(frames)

        return attention

    def grid(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of a layer."""
        rows, columns = self.size
        while rows * columns > tokens:
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return rows, columns

    def region(self, frame: int, tokens: int) -> Tensor:
        """(P,) bool: tokens with a neighbourhood that looks strongly at words
        which the edit prompt lacks.
        """
        key = self.step, frame, tokens
        if key in self.regions:
            return self.regions[key]
        lost = changed(self.source[0], self.positive[0])
        decoder = [
            frames[frame]
            for layer, frames in self.looks.items()
            if layer.startswith("output_blocks.")
        ]
        fewest = min(len(maps[0]) for maps in decoder)
        maps = torch.stack([head for maps in decoder for head in maps if len(head) == fewest]).mean(
            0
        )
        rows, columns = self.grid(fewest)
        strength = sum(
            (maps[:, word] for word, gone in enumerate(lost) if gone), torch.zeros(fewest)
        ).view(rows, columns)
        near = torch.stack(
            [
                strength[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].max()
                for row in range(rows)
                for column in range(columns)
            ]
        ).view(rows, columns)
        height, width = self.grid(tokens)
        wide = torch.stack(
            [
                near[y * rows // height, x * columns // width]
                for y in range(height)
                for x in range(width)
            ]
        )
        self.regions[key] = wide > self.strong * wide.max()
        return self.regions[key]
