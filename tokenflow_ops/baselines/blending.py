"""Attention maps of the source blended into the edit's (FateZero, section 3.2).

Which of them are taken depends on what the two prompts have in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Cosine distance from which on a word can be another one at all.
LEAST_DISTANCE = 0.1
# Share of the strongest attention to the changed words from which on a place belongs to them.
REGION = 0.3


def attention_maps(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Computes softmax(q k^T / sqrt(d)) by head, in float32.

    Args:
        q: Queries, (n, P, C).
        k: Keys, (n, T, C).
        heads: Number of attention heads; C is a multiple of it.

    Returns:
        (n, heads, P, T) float32.
    """
    q, k = (tokens.float().unflatten(-1, (heads, -1)).transpose(1, 2) for tokens in (q, k))
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def attend(maps: Tensor, v: Tensor) -> Tensor:
    """Weighs values by given maps, before the output projection.

    Args:
        maps: (n, heads, P, T).
        v: Values, (n, T, C).

    Returns:
        (n, P, C) in the dtype of `v`.
    """
    values = v.unflatten(-1, (maps.shape[1], -1)).transpose(1, 2)
    return (maps.to(v.dtype) @ values).transpose(1, 2).flatten(2)


def compare_words(words: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Finds for every token of a prompt the closest one of another prompt, and whether it is new.

    A token is new if its cosine distance to the closest one is over half of the largest distance
    among the prompt's tokens (what stands after a changed word changes a little with it) and
    over `LEAST_DISTANCE`.

    Args:
        words: Embeddings of the prompt, (n, T, D).
        others: Embeddings of the other prompt, (n, T', D).

    Returns:
        (n, T) int64 positions among the others, and (n, T) bool, whether the token is new beside
        that prompt.
    """
    similarity = F.normalize(words.float(), dim=-1) @ F.normalize(others.float(), dim=-1).transpose(
        1, 2
    )
    best, closest = similarity.max(-1)
    distance = 1 - best
    return closest, distance > (distance.amax(-1, keepdim=True) / 2).clamp(min=LEAST_DISTANCE)


@dataclass(frozen=True)
class PromptChange:
    """What an edit prompt changes of the source's, for n frames.

    Attributes:
        closest: For every token of the edit prompt the closest one of the source prompt, (n, T).
        new: Whether it is another word, (n, T) bool.
        attention: How much the source attends to those of its own words that the edit prompt
            lacks, (n, rows, columns).
    """

    closest: Tensor
    new: Tensor
    attention: Tensor

    @classmethod
    def between(
        cls, source: Tensor, edit: Tensor, maps: Tensor, grid: tuple[int, int]
    ) -> PromptChange:
        """Compares the two prompts.

        Args:
            source: Embeddings of the source prompt, (n, T', D).
            edit: Embeddings of the edit prompt, (n, T, D).
            maps: The source's attention to its own prompt, (n, P, T').
            grid: Rows and columns of the P tokens.

        Returns:
            What the edit prompt changes.
        """
        _, lost = compare_words(source, edit)
        return cls(
            *compare_words(edit, source), (maps * lost[:, None].to(maps)).sum(-1).unflatten(1, grid)
        )

    def region(self, grid: tuple[int, int]) -> Tensor:
        """Tells where the edit decides.

        Places and their neighbours with `REGION` of the strongest attention of their frame. Nowhere
        if the prompts have the same words.

        Args:
            grid: Rows and columns of the layer's P tokens.

        Returns:
            (n, P) bool.
        """
        near = F.interpolate(F.max_pool2d(self.attention[:, None], 3, stride=1, padding=1), grid)[
            :, 0
        ]
        return (near > REGION * near.amax((1, 2), keepdim=True)).flatten(1)

    def blend(self, source: Tensor, edit: Tensor) -> Tensor:
        """Blends cross-attention: the source's maps for the words that both have, else the edit's.

        Args:
            source: The source's maps, (n, heads, P, T').
            edit: The edit's maps, (n, heads, P, T).

        Returns:
            (n, heads, P, T).
        """
        index = self.closest.to(source.device)[:, None, None].expand_as(edit)
        return torch.where(
            self.new.to(source.device)[:, None, None], edit, source.gather(-1, index)
        )
