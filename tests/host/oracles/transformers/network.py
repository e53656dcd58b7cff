"""What image transformers have in common, written down a second time from their formulas.

Shares no code with the pack, and nothing with the host: a network is its weights by name. Frames
run one by one; softmax attention, float32. A frame's latents are (C, h, w), image tokens (P, D), a
prompt's tokens (T, D).

A block is a generator: it hands over queries, keys and values (T + P, heads, d), text first, and
how many of them are the text's; it is sent the attention's output (T + P, heads * d).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Asked = tuple[Tensor, Tensor, Tensor, int]
Running = Generator[Asked, Tensor, None]


@dataclass
class State:
    """One frame between two blocks. vector: noise level and pooled prompt. angles: the rotation of
    every token, text first.
    """

    image: Tensor
    text: Tensor
    vector: Tensor
    size: tuple[int, int]
    angles: Tensor | None = None
    padding: int = 0


@dataclass(frozen=True)
class Prompt:
    """tokens (T, D), and pooled (D,) or None."""

    tokens: Tensor
    pooled: Tensor | None = None


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def sinusoid(value: float, width: int = 256) -> Tensor:
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([(value * rates).cos(), (value * rates).sin()])


def angles(places: Tensor, widths: Sequence[int], theta: float) -> Tensor:
    """Of tokens at places (T, axes): (T, sum of widths / 2)."""
    return torch.cat(
        [
            places[:, axis : axis + 1].double()
            / theta ** (torch.arange(0, width, 2).double() / width)
            for axis, width in enumerate(widths)
        ],
        1,
    ).float()


def rotated(x: Tensor, turned: Tensor) -> Tensor:
    """(T, heads, d) with every pair of neighbours turned by its token's angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = turned.cos()[:, None], turned.sin()[:, None]
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2)


def rows_and_columns(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], 1).float()


class Network(ABC):
    """Weights by name, and what all families compute alike."""

    blocks: tuple[str, ...]

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def numbered(self, part: str) -> tuple[str, ...]:
        """The blocks of one part, in order."""
        numbers = {int(name.split(".")[1]) for name in self.weights if name.startswith(f"{part}.")}
        return tuple(f"{part}.{number}" for number in sorted(numbers))

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def two_layers(self, first: str, second: str, x: Tensor, between: object = F.silu) -> Tensor:
        assert callable(between)
        return self.linear(second, between(self.linear(first, x)))

    def scale(self, name: str) -> Tensor:
        """A norm's weights; newer hosts call Flux's otherwise."""
        for ending in ("weight", "scale"):
            if f"{name}.{ending}" in self.weights:
                return self.weights[f"{name}.{ending}"]
        raise KeyError(name)

    @abstractmethod
    def enter(self, x: Tensor, sigma: float, prompt: Prompt) -> State:
        """A noisy frame (C, h, w) before the first block."""

    @abstractmethod
    def run(self, block: str, state: State) -> Running:
        """One block, which changes the state."""

    @abstractmethod
    def leave(self, state: State) -> Tensor:
        """The velocity, (C, h, w)."""


def attend(q: Tensor, k: Tensor, v: Tensor, extra: Tensor | None = None) -> Tensor:
    """(T, heads, d) each: (T, heads * d). extra: added to the scores of every key."""
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    if extra is not None:
        scores = scores + extra
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1)
